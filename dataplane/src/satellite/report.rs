//! Signs of life: tells each primary side, every half minute, that this satellite is there.
//!
//! Owns the requests, their signatures and the wait between them. It runs on the thread that waits
//! for signals, one task for each primary side; none of them holds up another, nor anything relayed.
//! A primary side that is gone or refuses is asked ever more rarely, and its state is logged when it
//! changes.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::rand;
use reqwest::header::{CONTENT_TYPE, HeaderName};
use reqwest::{Client, Response, StatusCode, Url};
use steer::satellite::{ALIVE_EVERY_S, ALIVE_PATH, Alive, INSTANCE, Known};
use steer::signature::{self, Fields, Request};
use tokio::sync::watch;

use super::Satellite;
use super::keys::Keys;
use crate::config::Checked;
use crate::fault::OperatorFault;
use crate::observe::Registry;

/// Time for one request and its answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Wait after the first failure; it doubles with each further one.
const WAIT_MIN: Duration = Duration::from_secs(1);
/// Longest wait after a failure: as between two signs of life.
const WAIT_MAX: Duration = Duration::from_secs(ALIVE_EVERY_S);
/// Requests of one sign of life: the first to a process tells its word, and behind one address there
/// may be several.
const TRIES_MAX: usize = 3;
/// Longest word of a primary side's process, in bytes.
const INSTANCE_LEN_MAX: usize = 32;
/// Bytes of an answer, at most.
const ANSWER_BYTES_MAX: usize = 16 * 1024;
/// Characters of a refusal that are logged.
const REFUSAL_LEN_MAX: usize = 200;

/// Where signs of life go, and what they say.
#[derive(Debug)]
pub struct Reports {
    client: Client,
    primaries: Vec<Url>,
    body: Vec<u8>,
}

impl Reports {
    /// What `checked` asks for; `None` where it names no primary side.
    ///
    /// # Errors
    /// When `primary_ca` holds no certificates, or is not set and the system has none.
    pub fn new(checked: &Checked) -> Result<Option<Self>, OperatorFault> {
        if checked.primary_urls.is_empty() {
            return Ok(None);
        }
        let mut builder = Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .timeout(PATIENCE)
            .user_agent(concat!("perigee/", env!("CARGO_PKG_VERSION")));
        // Without TLS no certificates are needed, and a small container may have none.
        let speaks_tls = checked.primary_urls.iter().any(|url| url.scheme() == "https");
        match &checked.primary_ca {
            Some(path) => builder = builder.tls_certs_only(authorities(path)?),
            None if !speaks_tls => builder = builder.tls_certs_only([]),
            None => {}
        }
        let client = builder.build().map_err(|error| {
            OperatorFault::config(format_args!(
                "primary_url: {}; install the system's certificates, or name some with primary_ca",
                causes(&error)
            ))
        })?;
        let alive = Alive {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            access_url: checked.access_url.clone(),
        };
        // Texts under fixed names always serialise.
        let body = serde_json::to_vec(&alive).unwrap_or_default();
        Ok(Some(Self { client, primaries: checked.primary_urls.clone(), body }))
    }

    /// Reports for `satellite` for ever, a task on the runtime of this thread for each primary side.
    pub fn start(self, satellite: &Arc<Satellite>, registry: &Arc<Registry>) {
        for url in self.primaries {
            let primary = Primary {
                client: self.client.clone(),
                authority: authority(&url),
                url,
                body: self.body.clone(),
                instance: String::new(),
            };
            tokio::spawn(primary.keep_told(satellite.watch(), Arc::clone(registry)));
        }
    }
}

/// One primary side.
struct Primary {
    client: Client,
    url: Url,
    authority: String,
    body: Vec<u8>,
    /// The word of the process that answered last; empty before the first.
    instance: String,
}

/// Why a primary side was not told.
#[derive(Debug)]
struct Failure {
    /// The answer's status; `None` where there was no answer.
    status: Option<StatusCode>,
    why: String,
}

/// How it stands with a primary side, as far as the log tells it apart.
type State = Result<Known, Option<StatusCode>>;

impl Primary {
    async fn keep_told(mut self, mut keys: watch::Receiver<Arc<Keys>>, registry: Arc<Registry>) {
        let mut last = None;
        let mut wait = WAIT_MIN;
        loop {
            let now = Arc::clone(&keys.borrow_and_update());
            let outcome = self.tell(&now).await;
            let pause = match &outcome {
                Ok(_) => {
                    registry.front.satellite_reports.increment();
                    wait = WAIT_MIN;
                    Duration::from_secs(ALIVE_EVERY_S)
                }
                Err(_) => {
                    registry.front.satellite_report_failures.increment();
                    let pause = wait;
                    wait = (wait * 2).min(WAIT_MAX);
                    pause
                }
            };
            self.log_change(&mut last, outcome);
            tokio::select! {
                () = tokio::time::sleep(jittered(pause)) => {}
                // A new key is told at once. Whoever sets keys outlives this.
                Ok(()) = keys.changed() => wait = WAIT_MIN,
            }
        }
    }

    /// Logs `outcome` if it is another than the last. A refusal's words may differ each time.
    fn log_change(&self, last: &mut Option<State>, outcome: Result<Known, Failure>) {
        let primary = &self.authority;
        let (state, why) = match outcome {
            Ok(known) => (Ok(known), String::new()),
            Err(Failure { status, why }) => (Err(status), why),
        };
        if last.as_ref() == Some(&state) {
            return;
        }
        match &state {
            Ok(Known { name, fingerprint }) => {
                tracing::info!(%primary, name, fingerprint, "the primary side knows this satellite");
            }
            Err(_) => tracing::warn!(
                %primary,
                why,
                "the primary side does not know that this satellite is there"
            ),
        }
        *last = Some(state);
    }

    /// Sends one sign of life. The word of the process that is asked may have to be learnt first.
    async fn tell(&mut self, keys: &Keys) -> Result<Known, Failure> {
        let mut tries = 1;
        loop {
            let answer = self.send(keys).await?;
            let word = answer.headers().get(INSTANCE).and_then(|word| word.to_str().ok());
            let word = word.filter(|word| is_word(word)).unwrap_or_default().to_owned();
            let is_other = word != self.instance;
            self.instance = word;
            if !answer.status().is_success() && is_other && tries < TRIES_MAX {
                tries += 1;
                continue;
            }
            return read(answer).await;
        }
    }

    async fn send(&self, keys: &Keys) -> Result<Response, Failure> {
        let mut content_sha256 = [0; signature::DIGEST_LEN];
        content_sha256.copy_from_slice(digest(&SHA256, &self.body).as_ref());
        let request = Request {
            method: "POST",
            authority: &self.authority,
            path: self.url.path(),
            query: "",
            content_sha256: &content_sha256,
        };
        let nonce = format!("{}.{:032x}", self.instance, random());
        let fields =
            keys.with_signers(|signers| signature::sign(&request, signers, unix_s(), &nonce));
        let Fields { content_digest, signature_input, signature } = fields;
        let sent = self
            .client
            .post(self.url.clone())
            .header(CONTENT_TYPE, "application/json")
            .header(HeaderName::from_static("content-digest"), content_digest)
            .header(HeaderName::from_static("signature-input"), signature_input)
            .header(HeaderName::from_static("signature"), signature)
            .body(self.body.clone())
            .send()
            .await;
        sent.map_err(|error| Failure { status: None, why: causes(&error) })
    }
}

async fn read(mut answer: Response) -> Result<Known, Failure> {
    let status = answer.status();
    let fault = |why: String| Failure { status: Some(status), why };
    let mut body = Vec::new();
    while let Some(chunk) =
        answer.chunk().await.map_err(|error| Failure { status: None, why: causes(&error) })?
    {
        body.extend_from_slice(&chunk);
        if body.len() > ANSWER_BYTES_MAX {
            return Err(fault("it answered more than it should".to_owned()));
        }
    }
    if status.is_success() {
        return serde_json::from_slice(&body)
            .map_err(|_| fault("it answered something else; is control there?".to_owned()));
    }
    let problem = serde_json::from_slice::<serde_json::Value>(&body).unwrap_or_default();
    let detail: String = problem["detail"].as_str().unwrap_or("no more").to_owned();
    let detail: String = detail.chars().take(REFUSAL_LEN_MAX).collect();
    Err(fault(format!("it answered {status}: {}", detail.escape_debug())))
}

fn authorities(path: &Path) -> Result<Vec<reqwest::Certificate>, OperatorFault> {
    let pem = std::fs::read(path).map_err(|fault| {
        OperatorFault::file(path, &fault, "primary_ca must name a readable PEM file")
    })?;
    let trusted = reqwest::Certificate::from_pem_bundle(&pem).ok();
    trusted.filter(|trusted| !trusted.is_empty()).ok_or_else(|| {
        let path: PathBuf = path.into();
        OperatorFault::config(format_args!(
            "{}: holds no certificate; primary_ca must name a PEM file that does",
            path.display()
        ))
    })
}

/// What stands in `Host`: the host and, unless it is the scheme's own, the port.
fn authority(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

/// Where a primary side at `base` takes signs of life.
pub(crate) fn alive_url(base: &Url) -> Url {
    let mut url = base.clone();
    url.set_path(ALIVE_PATH);
    url
}

/// Whether `text` may be the word of a process.
fn is_word(text: &str) -> bool {
    (1..=INSTANCE_LEN_MAX).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric())
}

/// Half of `pause` at least, so that satellites which start together do not stay so.
fn jittered(pause: Duration) -> Duration {
    let chance = random() as u32;
    pause / 2 + (pause / 2).mul_f64(f64::from(chance) / f64::from(u32::MAX))
}

/// A random number; a constant one where the system has none, whose requests are then refused as
/// replayed.
fn random() -> u128 {
    let mut bytes = [0; 16];
    let _ = rand::fill(&mut bytes);
    u128::from_ne_bytes(bytes)
}

fn unix_s() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

/// An error and what caused it, in one line; reqwest's own words name the address twice.
fn causes(error: &reqwest::Error) -> String {
    let mut words = Vec::new();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        words.push(error.to_string());
        cause = error.source();
    }
    if words.is_empty() { error.to_string() } else { words.join(": ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_authority_is_what_stands_in_host() {
        for (url, wanted) in [
            ("https://primary.example", "primary.example"),
            ("https://Primary.example:443/", "primary.example"),
            ("http://primary.example:443/", "primary.example:443"),
            ("http://[::1]:8090", "[::1]:8090"),
        ] {
            assert_eq!(authority(&Url::parse(url).expect("a URL")), wanted);
        }
    }

    #[test]
    fn a_wait_is_never_shorter_than_half() {
        for _ in 0..100 {
            let wait = jittered(WAIT_MAX);
            assert!((WAIT_MAX / 2..=WAIT_MAX).contains(&wait), "{wait:?}");
        }
    }
}
