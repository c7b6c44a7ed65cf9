//! What the program says about itself: which revision it was built from, and by which compiler. It changes nothing else.

use std::path::Path;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-env-changed=PORTCULLIS_REVISION");
    // A package build has no repository; it may name the revision in the environment.
    let revision =
        std::env::var("PORTCULLIS_REVISION").ok().filter(|revision| !revision.is_empty()).or_else(checked_out);
    println!("cargo::rustc-env=PORTCULLIS_REVISION={}", revision.as_deref().unwrap_or("unknown"));
    let compiler = std::env::var("RUSTC").ok().and_then(|rustc| answer(&rustc, &["--version"]));
    let version = compiler.as_deref().and_then(|line| line.split(' ').nth(1));
    println!("cargo::rustc-env=PORTCULLIS_RUSTC={}", version.unwrap_or("unknown"));
}

/// The commit that is checked out, where this folder is a repository.
fn checked_out() -> Option<String> {
    // A folder within somebody else's repository has no revision of its own.
    Path::new(".git").exists().then_some(())?;
    let revision = answer("git", &["rev-parse", "--short=12", "HEAD"])?;
    // Every commit and checkout adds a line there; without a log of them, this stays what it was at the first build.
    let moves = answer("git", &["rev-parse", "--git-path", "logs/HEAD"])?;
    if Path::new(&moves).exists() {
        println!("cargo::rerun-if-changed={moves}");
    }
    Some(revision)
}

fn answer(program: &str, arguments: &[&str]) -> Option<String> {
    let done = Command::new(program).args(arguments).output().ok().filter(|done| done.status.success())?;
    Some(String::from_utf8(done.stdout).ok()?.trim().to_owned()).filter(|line| !line.is_empty())
}
