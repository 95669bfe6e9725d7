//! Servers under test: ours, stock derper and the limit programs, started alike and pinned before they run.
//!
//! Owns the scratch folder, the certificate they all present and the running process. A server lives for
//! one measurement. Must never let a server choose its cores: Go's runtime is held to as many.

use super::{CompareArgs, peer};
use crate::runner::Subject;
use crate::runner::child::{Helper, end};
use crate::{host, tls};
use anyhow::{Context as _, Result, bail};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long a server may take to listen.
const START_MAX: Duration = Duration::from_secs(10);

/// What all servers need: programs, certificate, keys.
pub(crate) struct Lab {
    folder: PathBuf,
    dataplane: Option<PathBuf>,
    derper: Option<PathBuf>,
}

enum Process {
    Server(Child),
    Limit(Helper),
}

/// A server that listens.
pub(crate) struct Server {
    process: Process,
    /// Where it listens.
    pub(crate) address: SocketAddrV4,
}

impl Lab {
    /// Makes the folder and the certificate and finds the programs; notes what is missing in `skipped`.
    pub(crate) fn new(args: &CompareArgs, skipped: &mut Vec<String>) -> Result<Self> {
        let folder = std::env::temp_dir().join(format!("perigee-bench-{}", std::process::id()));
        std::fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
        let pair = tls::self_signed()?;
        std::fs::write(folder.join("127.0.0.1.crt"), pair.cert.pem())?;
        std::fs::write(folder.join("127.0.0.1.key"), pair.signing_key.serialize_pem())?;
        let derper = args.derper.clone();
        if derper.is_none() {
            skipped.push("rows against derper: there is none".to_owned());
        }
        let dataplane = args.dataplane.as_ref().map(std::path::absolute).transpose()?;
        if dataplane.is_none() {
            skipped.push("rows about our server: --dataplane was not given".to_owned());
        }
        Ok(Self { folder, dataplane, derper })
    }

    /// The version of the derper in use.
    pub(crate) fn derper_version(&self) -> String {
        self.derper
            .as_deref()
            .map_or_else(|| "absent".to_owned(), |program| peer::version(program, "-version"))
    }

    /// The version of our server.
    pub(crate) fn dataplane_version(&self) -> String {
        let program = self.dataplane.as_deref();
        program.map_or_else(|| "absent".to_owned(), |program| peer::version(program, "--version"))
    }

    /// Whether `subject` can be started here.
    pub(crate) fn has(&self, subject: Subject) -> bool {
        match subject {
            Subject::Uring | Subject::Epoll => self.dataplane.is_some(),
            Subject::Derper => self.derper.is_some(),
            Subject::TlsLoop | Subject::TlsAccept | Subject::CopyLoop => true,
            Subject::TokioMt | Subject::TokioUring | Subject::Glommio => cfg!(feature = "engines"),
            // Of the other comparison.
            _ => false,
        }
    }

    /// Starts `subject` on `cores` and waits until it listens; `plain` without TLS, where it can.
    pub(crate) fn start(&self, subject: Subject, cores: &[usize], plain: bool) -> Result<Server> {
        let program = match subject {
            Subject::TlsLoop => "limit tls-loop",
            Subject::TlsAccept => "limit tls-accept",
            Subject::CopyLoop => "limit copy-loop",
            Subject::TokioMt => "engine tokio-mt",
            Subject::TokioUring => "engine tokio-uring",
            Subject::Glommio => "engine glommio",
            _ => return self.start_server(subject, cores),
        };
        let core = cores.first().context("no core")?;
        let mut args: Vec<String> = program.split(' ').map(str::to_owned).collect();
        args.extend(["--core".to_owned(), core.to_string()]);
        if plain && subject != Subject::CopyLoop {
            args.push("--plain".to_owned());
        }
        let mut helper = Helper::start(&args)?;
        let port = helper.wait_for("listening")?["port"].as_u64().context("no port")? as u16;
        Ok(Server {
            process: Process::Limit(helper),
            address: SocketAddrV4::new(Ipv4Addr::LOCALHOST, port),
        })
    }

    fn start_server(&self, subject: Subject, cores: &[usize]) -> Result<Server> {
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
        let address = SocketAddrV4::new(Ipv4Addr::LOCALHOST, port);
        let log_path = self.folder.join("server.log");
        let log = std::fs::File::create(&log_path)?;
        let mut command = match subject {
            Subject::Derper => Command::new(self.derper.as_ref().context("no derper")?),
            _ => {
                let mut command = Command::new(self.dataplane.as_ref().context("no dataplane")?);
                command.arg("derper");
                command
            }
        };
        command.args(["-a", &address.to_string(), "-http-port", "-1", "-stun=false"]);
        command
            .args(["-hostname", "127.0.0.1", "-certmode", "manual", "-certdir"])
            .arg(&self.folder);
        command.arg("-c").arg(self.folder.join(format!("{subject:?}.json")));
        match subject {
            Subject::Derper => drop(command.env("GOMAXPROCS", cores.len().to_string())),
            _ => {
                let io = if subject == Subject::Uring { "uring" } else { "epoll" };
                command.args(["--io", io, "--cores", &core_list(cores)]);
            }
        }
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let mut child = host::spawn_on(cores, &mut command)?;
        let deadline = Instant::now() + START_MAX;
        while TcpStream::connect(address).is_err() {
            if child.try_wait()?.is_some() || Instant::now() > deadline {
                end(&mut child);
                let log = std::fs::read_to_string(&log_path).unwrap_or_default();
                let tail: Vec<&str> = log.lines().rev().take(3).collect();
                bail!("{subject:?} does not listen: {}", tail.join(" | "));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(Server { process: Process::Server(child), address })
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        // A temporary folder; what cannot be removed does no harm.
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

impl Server {
    /// The server's process number.
    pub(crate) fn pid(&self) -> u32 {
        match &self.process {
            Process::Server(child) => child.id(),
            Process::Limit(helper) => helper.pid(),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Process::Server(child) = &mut self.process {
            end(child);
        }
    }
}

/// `0-0` or `0,1`: a single number would be a count of cores.
fn core_list(cores: &[usize]) -> String {
    match cores {
        [core] => format!("{core}-{core}"),
        _ => cores.iter().map(ToString::to_string).collect::<Vec<_>>().join(","),
    }
}
