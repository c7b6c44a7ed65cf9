//! `portcullis man`: the manual, one page with every command and option, or a page for each command in a folder.
//!
//! Commands and options are told by the command line itself; only what it does not know (environment, files, exit
//! codes) is written here.

use std::fmt::Write as _;
use std::io;
use std::path::PathBuf;

use clap::{Args as ClapArgs, Command, CommandFactory};
use clap_mangen::Man;

use super::{Cli, Done, complain, print, say};

/// Arguments of `portcullis man`.
#[derive(Debug, ClapArgs)]
pub struct Args {
    /// Write a page for every command into this folder
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

const ENVIRONMENT: &[(&str, &str)] = &[
    ("PORTCULLIS_ADMIN", "The admin address, as --admin."),
    ("PORTCULLIS_ADMIN_CA, PORTCULLIS_ADMIN_CERT, PORTCULLIS_ADMIN_KEY", "Certificates for an https admin address."),
    ("PORTCULLIS_ADMIN_TOKEN_FILE", "The file with the bearer token, as --admin-token."),
    ("PORTCULLIS_AUDIT_DIR", "The audit log's folder, as --dir of the audit commands."),
    ("NO_COLOR", "When it is set and not empty, nothing is coloured; nor is it where TERM is dumb."),
    ("COLUMNS, LINES", "The size of the screen that status --watch fits, where the terminal does not say."),
    (
        "OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_SERVICE_NAME",
        "Where spans go, and whose they are, in a build that sends them.",
    ),
    ("LISTEN_FDS, NOTIFY_SOCKET, WATCHDOG_USEC", "What a service manager tells run."),
    ("any other", "What a configuration refers to with env:NAME."),
];

const FILES: &[(&str, &str)] = &[
    ("config/portcullis.toml", "The configuration, unless -c names another; config default prints it with comments."),
    ("config/orgs.d/*.toml", "One partner each; config schema --org is their schema."),
    ("certs/", "What the certs commands make."),
    ("/var/lib/portcullis", "Use and revocations (quota.state)."),
    ("/var/log/portcullis", "The audit log (audit.directory)."),
    (".portcullis-demo/", "Everything that demo makes."),
];

const EXITS: &[(&str, &str)] = &[
    ("0", "Done; valid; allowed; whole."),
    ("1", "Refused or invalid: the program worked, and the answer is no."),
    ("2", "It could not find out: wrong usage, an unreadable file, nobody at the admin address."),
];

/// Prints the manual, or writes it.
pub fn run(args: &Args) -> Done {
    let mut cli = Cli::command().disable_help_subcommand(true);
    cli.build();
    let Some(dir) = &args.dir else { return print(whole(&cli).map_err(complain)?) };
    let written = std::fs::create_dir_all(dir)
        .and_then(|()| clap_mangen::generate_to(cli.clone(), dir))
        .and_then(|()| std::fs::write(dir.join("portcullis.1"), root(&cli)?));
    written.map_err(|error| complain(format_args!("{}: {error}", dir.display())))?;
    say(format_args!("wrote the pages to {}", dir.display()))
}

/// The page of the program itself, which names the others.
fn root(cli: &Command) -> io::Result<String> {
    let page = rendered(|into| Man::new(cli.clone()).render(into))?;
    Ok(page + &closing())
}

/// Everything in one page.
fn whole(cli: &Command) -> io::Result<String> {
    let man = Man::new(cli.clone());
    let mut page = rendered(|into| {
        man.render_title(into)?;
        man.render_name_section(into)?;
        man.render_synopsis_section(into)?;
        man.render_description_section(into)
    })?;
    for command in cli.get_subcommands() {
        section(command, &mut page)?;
    }
    Ok(page + &closing())
}

/// A command's section, and those of the commands below it.
fn section(command: &Command, page: &mut String) -> io::Result<()> {
    let name = command.get_bin_name().unwrap_or_else(|| command.get_name());
    let _ = writeln!(page, ".SH \"{}\"", name.to_uppercase());
    let about = command.get_long_about().or_else(|| command.get_about()).map(ToString::to_string).unwrap_or_default();
    let _ = writeln!(page, "{}", escaped(&about));
    let man = Man::new(command.clone());
    let told = rendered(|into| {
        man.render_synopsis_section(into)?;
        man.render_options_section(into)
    })?;
    page.push_str(&told.replace(".SH SYNOPSIS", ".SS Synopsis").replace(".SH OPTIONS", ".SS Options"));
    command.get_subcommands().try_for_each(|below| section(below, page))
}

fn rendered(render: impl FnOnce(&mut dyn io::Write) -> io::Result<()>) -> io::Result<String> {
    let mut page = Vec::new();
    render(&mut page)?;
    Ok(String::from_utf8_lossy(&page).into_owned())
}

fn closing() -> String {
    let mut page = String::new();
    for (title, entries) in [("ENVIRONMENT", ENVIRONMENT), ("FILES", FILES), ("EXIT STATUS", EXITS)] {
        let _ = writeln!(page, ".SH \"{title}\"");
        for (name, text) in entries {
            let _ = writeln!(page, ".TP\n\\fB{}\\fR\n{}", escaped(name), escaped(text));
        }
    }
    page
}

/// Text that is no roff: no escape, no option whose dashes turn into hyphens, no line that is a request.
fn escaped(text: &str) -> String {
    let text = text.replace('\\', "\\e").replace('-', "\\-");
    let lines =
        text.lines().map(|line| if line.starts_with(['.', '\'']) { format!("\\&{line}") } else { line.to_owned() });
    lines.collect::<Vec<_>>().join("\n")
}
