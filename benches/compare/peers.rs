//! The gateways that are compared: how each is configured, started on its own CPU, checked, and ended.
//!
//! Every peer does the same work for a request as far as it can: TLS 1.3 with a client certificate checked against a
//! revocation list, a purpose demanded, a rate counted for each organization, the client named to the upstream.
//! Portcullis has everything on.

use std::fs::File;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::gauge::{GATEWAY_CPU, eventually, files, on_cpu};
use crate::place::{Place, identity};
use crate::script;
use crate::wire::{H1, Target, wrong};

/// Whom to measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, clap::ValueEnum)]
pub enum Peer {
    Portcullis,
    Nginx,
    Haproxy,
    /// The upstream itself: what load and upstream cost, and nothing between them.
    Direct,
}

impl Peer {
    pub const ALL: [Peer; 4] = [Peer::Portcullis, Peer::Nginx, Peer::Haproxy, Peer::Direct];

    /// Its name, and its program's.
    pub fn name(self) -> &'static str {
        match self {
            Peer::Portcullis => "portcullis",
            Peer::Nginx => "nginx",
            Peer::Haproxy => "haproxy",
            Peer::Direct => "direct",
        }
    }

    /// Whether it stands for what others do.
    pub fn is_reference(self) -> bool {
        matches!(self, Peer::Nginx | Peer::Haproxy)
    }

    /// What it calls itself, if it is installed.
    pub fn version(self, gateway: &str) -> Option<String> {
        let (program, flag) = match self {
            Peer::Portcullis => (gateway, "--version"),
            Peer::Nginx | Peer::Haproxy => (self.name(), "-v"),
            Peer::Direct => return Some("no gateway at all".into()),
        };
        let output = Command::new(program).arg(flag).output().ok()?;
        let text = [output.stdout, output.stderr].concat();
        Some(String::from_utf8_lossy(&text).lines().next().unwrap_or_default().to_owned())
    }
}

/// A gateway that runs.
pub struct Running {
    child: Option<Child>,
    pub address: SocketAddr,
    /// Where it shows metrics and takes commands.
    pub admin: Option<SocketAddr>,
}

impl Running {
    /// Starts a peer in front of `upstream` and waits until it serves; `gateway` is portcullis's program.
    ///
    /// For portcullis, organizations stand in `orgs.d` of the place.
    pub async fn start(peer: Peer, place: &Place, upstream: SocketAddr, gateway: &str) -> io::Result<Running> {
        if peer == Peer::Direct {
            return Ok(Running { child: None, address: upstream, admin: None });
        }
        let [address, admin] = free_addresses()?;
        let fill = |template: &str| {
            template
                .replace("@FOLDER@", &place.folder().display().to_string())
                .replace("@ADDRESS@", &address.to_string())
                .replace("@ADMIN@", &admin.to_string())
                .replace("@FILES@", &files().to_string())
                .replace("@CONNECTIONS@", &((files() - 500) / 2).to_string())
                .replace("@UPSTREAM@", &upstream.to_string())
        };
        let (program, arguments, file, template) = match peer {
            Peer::Nginx => {
                ("nginx", &["-p", ".", "-e", "nginx.log", "-c"][..], "nginx.conf", include_str!("peers/nginx.conf"))
            }
            Peer::Haproxy => ("haproxy", &["-db", "-f"][..], "haproxy.cfg", include_str!("peers/haproxy.cfg")),
            Peer::Portcullis | Peer::Direct => {
                (gateway, &["run", "-c"][..], "portcullis.toml", include_str!("peers/portcullis.toml"))
            }
        };
        place.write(file, &fill(template))?;
        let log = File::create(place.folder().join(format!("{}.out", peer.name())))?;
        let mut command = Command::new(program);
        command.args(arguments).arg(place.folder().join(file)).current_dir(place.folder());
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let child = on_cpu(GATEWAY_CPU, || command.spawn())??;
        let mut running = Running { child: Some(child), address, admin: (peer == Peer::Portcullis).then_some(admin) };
        let ready = eventually(peer.name(), Duration::from_secs(60), async || running.answers(place).await).await;
        let said = || std::fs::read_to_string(place.folder().join(format!("{}.out", peer.name()))).unwrap_or_default();
        ready.and_then(|ready| ready).map_err(|error| wrong(format!("{}: {error}\n{}", peer.name(), said())))?;
        Ok(running)
    }

    /// The first process.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// How a partner reaches it.
    pub fn target(&self, place: &Place, h2: bool) -> io::Result<Target> {
        match self.child {
            None => Ok(Target::plain(self.address)),
            Some(_) => Target::tls(self.address, place.authority(), Some(&identity(&place.acme)), h2),
        }
    }

    /// Holds it to what all are supposed to do: refuse who has no certificate or a revoked one, and who names no
    /// purpose.
    pub async fn check(&self, place: &Place) -> io::Result<()> {
        if self.child.is_none() {
            return Ok(());
        }
        let asked = script::body(false, 200);
        for (what, client) in [("no certificate", None), ("a revoked certificate", Some(identity(&place.revoked)))] {
            let target = Target::tls(self.address, place.authority(), client.as_ref(), false)?;
            let answered = async { H1::connect(&target).await?.ask(&script::request(&asked)).await };
            if answered.await.is_ok_and(|(status, _)| status == 200) {
                return Err(wrong(format!("it serves a client with {what}")));
            }
        }
        let target = self.target(place, false)?;
        let request = script::request_without(&asked, "portcullis-purpose");
        match H1::connect(&target).await?.ask(&request).await? {
            (400 | 403, _) => Ok(()),
            (status, _) => Err(wrong(format!("it answers {status} to a request without a purpose"))),
        }
    }

    /// Whether it serves; an error when it has ended.
    async fn answers(&mut self, place: &Place) -> Option<io::Result<()>> {
        if let Some(Ok(Some(status))) = self.child.as_mut().map(Child::try_wait) {
            return Some(Err(wrong(format!("it ended at once: {status}"))));
        }
        let target = self.target(place, false).ok()?;
        let mut connection = H1::connect(&target).await.ok()?;
        let (status, _) = connection.ask(&script::request(&script::body(false, 200))).await.ok()?;
        (status == 200).then_some(Ok(()))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let Some(child) = &mut self.child else { return };
        let pid = i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw);
        // Asked to end and not killed, nginx takes its worker along.
        let _ = pid.map(|pid| rustix::process::kill_process(pid, rustix::process::Signal::TERM));
        let patience = std::iter::repeat_n(Duration::from_millis(20), 250);
        for pause in patience {
            if !matches!(child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(pause);
        }
        drop(child.kill());
        drop(child.wait());
    }
}

/// Writes the organizations that the comparison is measured with: a partner, its lead, eleven limits.
pub fn two_organizations(place: &Place) -> io::Result<()> {
    place.write("orgs.d/lead.toml", include_str!("peers/lead.toml"))?;
    place.write("orgs.d/acme.toml", include_str!("peers/acme.toml"))
}

/// Two ports that are free now; each is held until both are known, or they might be one.
fn free_addresses() -> io::Result<[SocketAddr; 2]> {
    let bound = || TcpListener::bind("127.0.0.1:0");
    let (one, other) = (bound()?, bound()?);
    Ok([one.local_addr()?, other.local_addr()?])
}
