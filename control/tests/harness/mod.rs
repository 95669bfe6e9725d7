//! A running `control` in a folder of its own, and those it meets: a plain HTTP client, the command
//! line, and a satellite that tells a key.
#![allow(dead_code, reason = "each test file takes what it needs")]

pub(crate) mod dataplane;
pub(crate) mod signing;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, mpsc};
use std::time::Duration;

use base64::{Engine, prelude::BASE64_STANDARD};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// Time for anything that takes milliseconds on an idle machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// A public key, in the one form of all of them.
pub(crate) const KEY: &str = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";

/// The key whose bytes are all `byte`.
pub(crate) fn key(byte: u8) -> String {
    BASE64_STANDARD.encode([byte; 32])
}

/// The value of `Authorization` for this token.
pub(crate) fn bearer(token: &str) -> String {
    format!("Bearer {token}")
}

/// A folder that goes with the test.
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    pub(crate) fn new() -> Self {
        use std::sync::atomic::{AtomicUsize, Ordering};
        static MADE: AtomicUsize = AtomicUsize::new(0);
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        // Short, as the path of a socket must be.
        let path = std::env::temp_dir().join(format!("pgctl-{}-{number}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir(&path).expect("the temporary folder takes folders");
        Self(path)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The program, without what the environment would change.
pub(crate) fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_control"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("PERIGEE_") {
            command.env_remove(name);
        }
    }
    command
}

/// What a command has printed, and how it ended.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) errors: String,
}

impl Ran {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.out).expect("the output is JSON")
    }

    pub(crate) fn expect_success(self) -> Self {
        assert_eq!(self.code, 0, "{}", self.errors);
        self
    }
}

/// Runs `command` to its end, with nothing to read.
pub(crate) fn run(command: &mut Command) -> Ran {
    run_with(command, "")
}

fn run_with(command: &mut Command, input: &str) -> Ran {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the program starts");
    let mut stdin = child.stdin.take().expect("standard input is piped");
    // A command that asks nothing may have ended.
    let _ = stdin.write_all(input.as_bytes());
    drop(stdin);
    let output = child.wait_with_output().expect("the program ends");
    let text = |bytes| String::from_utf8(bytes).expect("the program prints UTF-8");
    let code = output.status.code().expect("the program is not killed");
    Ran { code, out: text(output.stdout), errors: text(output.stderr) }
}

/// A running `control serve`.
pub(crate) struct Control {
    child: Child,
    log: Mutex<mpsc::Receiver<String>>,
    /// The line that told that it was ready.
    pub(crate) ready: String,
    pub(crate) address: SocketAddr,
    pub(crate) socket: PathBuf,
    pub(crate) state: PathBuf,
    pub(crate) scratch: Scratch,
    more: Vec<String>,
}

impl Control {
    pub(crate) fn start() -> Self {
        Self::start_with(&[])
    }

    /// Starts it with these further flags.
    pub(crate) fn start_with(more: &[&str]) -> Self {
        Self::start_in(Scratch::new(), more.iter().map(|arg| (*arg).to_owned()).collect())
    }

    fn start_in(scratch: Scratch, more: Vec<String>) -> Self {
        Self::start_as(command(), scratch, more)
    }

    /// Starts it as `command`, which is [`command`] with a surrounding of its own.
    pub(crate) fn start_as(mut command: Command, scratch: Scratch, more: Vec<String>) -> Self {
        let (socket, state) = (scratch.path("run/s"), scratch.path("state"));
        command.args(["serve", "--listen", "127.0.0.1:0", "--log", "debug"]);
        command.arg("--socket").arg(&socket).arg("--state-dir").arg(&state).args(&more);
        let mut child =
            command.stderr(Stdio::piped()).stdin(Stdio::null()).spawn().expect("it starts");
        let errors = child.stderr.take().expect("standard error is piped");
        let (lines, log) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(errors).lines().map_while(Result::ok) {
                // Whoever read the log may have seen enough.
                let _ = lines.send(line);
            }
        });
        let ready = wait(&log, "control ready");
        let listen = ready.split("listen=[").nth(1).and_then(|rest| rest.split(']').next());
        let address = listen.expect("the ready line has it").parse().expect("an address");
        let log = Mutex::new(log);
        Self { child, log, ready, address, socket, state, scratch, more }
    }

    /// The next line of the log that contains `what`.
    pub(crate) fn wait_for(&self, what: &str) -> String {
        wait(&self.log.lock().expect("no reader panics"), what)
    }

    /// Sends it `signal`.
    pub(crate) fn signal(&self, signal: Signal) {
        let id = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        kill_process(id.expect("a process has an id"), signal).expect("it is ours");
    }

    /// Tells it to end, and waits.
    pub(crate) fn stop(mut self) -> ExitStatus {
        self.end()
    }

    /// The same where another one is to follow it.
    pub(crate) fn end(&mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.child.wait().expect("it ends")
    }

    /// Ends it as a power cut would.
    pub(crate) fn kill(&mut self) {
        self.child.kill().expect("it is ours");
        self.child.wait().expect("it ends");
    }

    /// Another one over the state of this, which has ended.
    pub(crate) fn start_again(mut self) -> Self {
        let scratch = std::mem::replace(&mut self.scratch, Scratch::new());
        Self::start_in(scratch, std::mem::take(&mut self.more))
    }

    /// The same with `command`, as in [`Self::start_as`].
    pub(crate) fn start_again_as(mut self, command: Command) -> Self {
        let scratch = std::mem::replace(&mut self.scratch, Scratch::new());
        Self::start_as(command, scratch, std::mem::take(&mut self.more))
    }

    /// Tells it to end, and waits; what it has logged and no test has read yet.
    pub(crate) fn stop_and_read(mut self) -> (ExitStatus, Vec<String>) {
        let status = self.end();
        let log = self.log.lock().expect("no reader panics");
        (status, log.iter().collect())
    }

    /// Runs the command line against it.
    pub(crate) fn cli(&self, args: &[&str]) -> Ran {
        self.cli_with(args, "")
    }

    /// Runs the command line against it, with `input` typed.
    pub(crate) fn cli_with(&self, args: &[&str], input: &str) -> Ran {
        let mut command = command();
        command.args(args);
        if args.first() != Some(&"backup") {
            command.arg("--socket").arg(&self.socket);
        }
        run_with(&mut command, input)
    }

    /// A new token with these scopes.
    pub(crate) fn token(&self, name: &str, scopes: &str) -> String {
        let made = self.cli(&["tokens", "create", name, "--scope", scopes]).expect_success();
        made.out.trim().to_owned()
    }

    pub(crate) fn get(&self, path: &str) -> Answer {
        self.ask("GET", path, &[], "")
    }

    /// One request over TCP, on a connection of its own.
    pub(crate) fn ask(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> Answer {
        self.ask_bytes(method, path, headers, body.as_bytes())
    }

    /// One request whose body may be no text.
    pub(crate) fn ask_bytes(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Answer {
        let mut stream = self.send(method, path, headers, body);
        let mut text = String::new();
        // A server that refuses a large body may close before it has read it all.
        let _ = stream.read_to_string(&mut text);
        Answer::parse(&text)
    }

    fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> TcpStream {
        let mut stream = TcpStream::connect(self.address).expect("it listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a time-out is taken");
        let mut head =
            format!("{method} {path} HTTP/1.1\r\nHost: control\r\nConnection: close\r\n");
        for (name, value) in headers {
            head += &format!("{name}: {value}\r\n");
        }
        head += &format!("Content-Length: {}\r\n\r\n", body.len());
        stream.write_all(head.as_bytes()).expect("it reads");
        let _ = stream.write_all(body);
        stream
    }

    /// What is answered to a head alone, whose body never comes.
    pub(crate) fn ask_without_body(&self, method: &str, path: &str, length: usize) -> Answer {
        let mut stream = TcpStream::connect(self.address).expect("it listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a time-out is taken");
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: control\r\nContent-Type: application/json\r\n\
             Content-Length: {length}\r\nConnection: close\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).expect("it reads");
        let mut text = String::new();
        let _ = stream.read_to_string(&mut text);
        Answer::parse(&text)
    }

    /// What is answered to these lines of a head and no body.
    pub(crate) fn ask_head(&self, lines: &str) -> Answer {
        let mut stream = TcpStream::connect(self.address).expect("it listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a time-out is taken");
        let head = format!("{lines}Connection: close\r\n\r\n");
        stream.write_all(head.as_bytes()).expect("it reads");
        let mut text = String::new();
        let _ = stream.read_to_string(&mut text);
        Answer::parse(&text)
    }

    /// Sends `bytes`, which are no request, and reads whatever comes back.
    pub(crate) fn throw(&self, bytes: &[u8]) {
        let mut stream = TcpStream::connect(self.address).expect("it listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a time-out is taken");
        // It may close before it has read everything.
        let _ = stream.write_all(bytes);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let _ = stream.read_to_end(&mut Vec::new());
    }

    /// An open stream of events.
    pub(crate) fn watch(&self, path: &str, authorization: &str) -> Stream {
        let stream = self.send("GET", path, &[("authorization", authorization)], b"");
        Stream(BufReader::new(stream))
    }

    /// The same, resumed after the event with this id.
    pub(crate) fn watch_after(&self, id: &str, authorization: &str) -> Stream {
        let headers = [("authorization", authorization), ("last-event-id", id)];
        Stream(BufReader::new(self.send("GET", "/api/v1/watch", &headers, b"")))
    }

    /// How much memory it has, in KiB.
    pub(crate) fn resident_kib(&self) -> u64 {
        let path = format!("/proc/{}/status", self.child.id());
        let status = std::fs::read_to_string(path).expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let number = line.and_then(|line| line.trim().strip_suffix(" kB"));
        number.and_then(|number| number.parse().ok()).expect("the kernel tells it")
    }

    /// A request of whose body the second half comes later.
    pub(crate) fn half_a_body(
        &self,
        method: &str,
        path: &str,
        authorization: &str,
        body: &str,
    ) -> Upload {
        let mut stream = TcpStream::connect(self.address).expect("it listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a time-out is taken");
        let (sent, rest) = body.split_at(body.len() / 2);
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: control\r\nConnection: close\r\n\
             Content-Type: application/json\r\nAuthorization: {authorization}\r\n\
             Content-Length: {}\r\nExpect: 100-continue\r\n\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes()).expect("it reads");
        // It is asked for the body once it knows who asks.
        let mut line = [0; 25];
        stream.read_exact(&mut line).expect("it wants the body");
        assert_eq!(&line, b"HTTP/1.1 100 Continue\r\n\r\n");
        stream.write_all(sent.as_bytes()).expect("it reads");
        Upload { stream, rest: rest.to_owned() }
    }

    /// A connection whose request is never finished.
    pub(crate) fn half_a_request(&self) -> TcpStream {
        let mut stream = TcpStream::connect(self.address).expect("it listens");
        stream.write_all(b"GET /livez HTTP/1.1\r\nHost:").expect("it reads");
        stream
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn wait(log: &mpsc::Receiver<String>, what: &str) -> String {
    let mut seen = Vec::new();
    loop {
        match log.recv_timeout(PATIENCE) {
            Ok(line) if line.contains(what) => return line,
            Ok(line) => seen.push(line),
            Err(_) => panic!("no {what:?} in the log:\n{}", seen.join("\n")),
        }
    }
}

/// An answer over TCP.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: String,
    headers: Vec<(String, String)>,
}

impl Answer {
    fn parse(text: &str) -> Self {
        let (head, body) = text.split_once("\r\n\r\n").expect("an answer has a head");
        let mut lines = head.lines();
        let status = lines.next().and_then(|line| line.split(' ').nth(1));
        let status = status.and_then(|status| status.parse().ok()).expect("it has a status");
        let headers = lines.filter_map(|line| line.split_once(": "));
        let headers = headers.map(|(name, value)| (name.to_lowercase(), value.to_owned()));
        Self { status, body: body.to_owned(), headers: headers.collect() }
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|_| panic!("no JSON: {}", self.body))
    }

    /// The code of the problem that this is.
    pub(crate) fn code(&self) -> String {
        self.json()["code"].as_str().unwrap_or_default().to_owned()
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

/// Server-sent events.
pub(crate) struct Stream(BufReader<TcpStream>);

/// A request that is not all there yet.
pub(crate) struct Upload {
    stream: TcpStream,
    rest: String,
}

impl Upload {
    /// Sends the rest of it; the answer.
    pub(crate) fn go_on(mut self) -> Answer {
        self.stream.write_all(self.rest.as_bytes()).expect("it reads");
        let mut text = String::new();
        let _ = self.stream.read_to_string(&mut text);
        Answer::parse(&text)
    }
}

/// One of them.
#[derive(Debug, Default)]
pub(crate) struct Event {
    pub(crate) name: String,
    pub(crate) id: String,
    pub(crate) data: Value,
}

impl Stream {
    /// The next event.
    pub(crate) fn event(&mut self) -> Event {
        let mut event = Event::default();
        loop {
            let mut line = String::new();
            let read = self.0.read_line(&mut line).expect("the stream goes on");
            assert!(read > 0, "the stream has ended");
            // Lengths of chunks are lines of their own, without a colon.
            match line.trim_end().split_once(": ") {
                Some(("event", name)) => event.name = name.to_owned(),
                Some(("id", id)) => event.id = id.to_owned(),
                Some(("data", data)) => event.data = serde_json::from_str(data).expect("JSON"),
                _ if line.trim_end().is_empty() && !event.name.is_empty() => return event,
                _ => {}
            }
        }
    }

    /// Whether nothing but the stream's end is left.
    pub(crate) fn ended(&mut self) -> bool {
        let mut rest = String::new();
        let _ = self.0.read_to_string(&mut rest);
        !rest.contains("event: ")
    }
}

/// A satellite that tells its key to whoever asks.
pub(crate) struct Satellite {
    pub(crate) url: String,
}

impl Satellite {
    /// One with this key, and with this fingerprint instead of the key's own.
    pub(crate) fn start(key: &str, fingerprint: Option<&str>) -> Self {
        let fingerprint =
            fingerprint.map_or_else(|| control::resource::fingerprint(key), str::to_owned);
        let body = serde_json::json!({"key": key, "fingerprint": fingerprint}).to_string();
        let url = serve("/api/private/satellites/key", move || body.clone());
        Self { url }
    }
}

/// Serves what `body` gives at `path`, and nothing else, for as long as the test runs.
pub(crate) fn serve(path: &'static str, body: impl Fn() -> String + Send + 'static) -> String {
    serve_with(move |head| head.starts_with(&format!("GET {path} ")).then(&body))
}

/// The same for whoever posts to `path`.
pub(crate) fn serve_posts(
    path: &'static str,
    body: impl Fn() -> String + Send + 'static,
) -> String {
    serve_with(move |head| head.starts_with(&format!("POST {path} ")).then(&body))
}

/// Serves these pages, and nothing else, for as long as the test runs.
pub(crate) fn serve_pages(pages: &'static [(&'static str, &'static str)]) -> String {
    serve_with(move |head| {
        let page = pages.iter().find(|(path, _)| head.starts_with(&format!("GET {path} ")));
        page.map(|(_, body)| (*body).to_owned())
    })
}

/// Serves what `answer` gives for a request's head; 404 where it gives nothing.
pub(crate) fn serve_with(answer: impl Fn(&str) -> Option<String> + Send + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback binds");
    let address = listener.local_addr().expect("bound sockets have an address");
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let mut reader = BufReader::new(stream);
            let mut head = String::new();
            while !head.ends_with("\r\n\r\n") && reader.read_line(&mut head).unwrap_or(0) > 0 {}
            let (status, body) = match answer(&head) {
                Some(body) => ("200 OK", body),
                None => ("404 Not Found", String::new()),
            };
            let length = body.len();
            let answer = format!(
                "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
            );
            let _ = reader.get_mut().write_all(answer.as_bytes());
        }
    });
    format!("http://{address}")
}

/// A satellite that tells its key over TLS, with a certificate of an authority of its own.
pub(crate) struct TlsSatellite {
    pub(crate) url: String,
    /// The authority's certificate, as PEM.
    pub(crate) authority: String,
}

impl TlsSatellite {
    pub(crate) fn start() -> Self {
        use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
        let mut params = CertificateParams::new(Vec::new()).expect("no names are fine");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = || KeyPair::generate().expect("the system has random bytes");
        let issuer = CertifiedIssuer::self_signed(params, key()).expect("it signs itself");
        let names = CertificateParams::new(vec!["127.0.0.1".to_owned()]).expect("an address");
        let own = key();
        let certificate = names.signed_by(&own, &issuer).expect("the authority signs");
        let own = rustls::pki_types::PrivateKeyDer::try_from(own.serialize_der());
        let config = rustls::ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], own.expect("a key"))
            .expect("key and certificate belong together");
        let config = std::sync::Arc::new(config);
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback binds");
        let address = listener.local_addr().expect("bound sockets have an address");
        let body = serde_json::json!({
            "key": KEY, "fingerprint": control::resource::fingerprint(KEY),
        });
        let (body, authority) = (body.to_string(), issuer.pem());
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let connection = rustls::ServerConnection::new(std::sync::Arc::clone(&config));
                let connection = connection.expect("the settings are good");
                let mut stream = rustls::StreamOwned::new(connection, stream);
                let mut head = [0; 4096];
                // A client that does not trust us ends here.
                if stream.read(&mut head).is_ok() {
                    let length = body.len();
                    let _ = write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n");
                    let _ = stream.write_all(body.as_bytes());
                }
            }
        });
        Self { url: format!("https://{address}"), authority }
    }
}

/// Writes `text` to the file `name` of `scratch`.
pub(crate) fn write(scratch: &Scratch, name: &str, text: &str) -> String {
    let path: &Path = &scratch.path(name);
    std::fs::write(path, text).expect("a scratch folder takes files");
    path.display().to_string()
}
