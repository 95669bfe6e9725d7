//! The HTTP client of the command line, over the unix socket.

use std::path::PathBuf;
use std::time::Duration;

use reqwest::{Method, RequestBuilder, Response, StatusCode, Url};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::timeout;

use crate::derp_map::load::causes;
use crate::fault::{ExitCode, OperatorFault};
use crate::resource::{Resource, Row};
use crate::serve::problem::Problem;
use crate::serve::{Listing, MAP_REASON};
use crate::store::Revision;

/// Rows asked for at once.
const PAGE_ROWS: usize = 1000;
/// Time for an answer; the server gives up earlier, after 30 s.
const PATIENCE: Duration = Duration::from_secs(35);
/// After so long control is asked whether it is there at all.
const DOUBT: Duration = Duration::from_secs(5);
/// Time for the answer to that, which takes control no work.
const LIFE: Duration = Duration::from_secs(5);

/// Asks one control.
#[derive(Debug)]
pub(super) struct Client {
    http: reqwest::Client,
    socket: PathBuf,
}

impl Client {
    /// A client of the control that listens on `socket`; nothing is asked yet.
    pub(super) fn new(socket: PathBuf) -> Result<Self, OperatorFault> {
        let built = reqwest::Client::builder()
            .unix_socket(socket.clone())
            .timeout(PATIENCE)
            // Between two requests somebody may be asked, for longer than control keeps it open.
            .pool_max_idle_per_host(0)
            .tls_certs_only([])
            .build();
        let http =
            built.map_err(|error| OperatorFault::failed(format!("no HTTP client: {error}")))?;
        Ok(Self { http, socket })
    }

    /// A request for the path of these words.
    fn request(&self, method: Method, words: &[&str]) -> Result<RequestBuilder, OperatorFault> {
        // A path cannot hold these, and nothing is called so.
        if let Some(word) = words.iter().find(|word| [".", ".."].contains(word)) {
            let why = format!("there is nothing of the name {word:?}");
            return Err(OperatorFault::new(ExitCode::NotFound, why));
        }
        let mut url = Url::parse("http://control/api/v1")
            .map_err(|error| OperatorFault::failed(format!("URL: {error}")))?;
        if let Ok(mut path) = url.path_segments_mut() {
            path.extend(words);
        }
        Ok(self.http.request(method, url))
    }

    async fn send(&self, request: RequestBuilder) -> Result<Response, OperatorFault> {
        let answer = self.answer(request).await?;
        if answer.status().is_success() {
            return Ok(answer);
        }
        let status = answer.status();
        let problem = answer.bytes().await.ok();
        let problem = problem.and_then(|body| serde_json::from_slice::<Problem>(&body).ok());
        let what = problem.map_or_else(|| format!("answered {status}"), |problem| problem.detail);
        Err(OperatorFault::new(exit_code(status), what))
    }

    /// Why the DERP map is not what the records say. None if it is, and none if that cannot be learnt:
    /// this only goes with an answer that was given.
    pub(super) async fn map_fault(&self) -> Option<String> {
        let asked = self.answer(self.http.get("http://control/readyz")).await;
        let text = asked.ok()?.text().await.ok()?;
        let mut reasons = text.lines().filter_map(|line| line.split_once(": "));
        let (_, why) = reasons.find(|(what, _)| *what == MAP_REASON)?;
        Some(why.to_owned())
    }

    /// What is answered to `request`, as long as control gives a sign of life.
    async fn answer(&self, request: RequestBuilder) -> Result<Response, OperatorFault> {
        let answer = request.send();
        tokio::pin!(answer);
        let answered = match timeout(DOUBT, &mut answer).await {
            Ok(answered) => answered,
            Err(_) => {
                let life = self.http.get("http://control/livez").timeout(LIFE).send();
                tokio::select! {
                    answered = &mut answer => answered,
                    lives = life => match lives {
                        Ok(_) => answer.await,
                        Err(error) => Err(error),
                    }
                }
            }
        };
        answered.map_err(|error| self.unreachable(&error))
    }

    fn unreachable(&self, error: &reqwest::Error) -> OperatorFault {
        let socket = self.socket.display();
        if error.is_timeout() {
            let why = format!("{socket}: control does not answer; look at its log, or try again");
            return OperatorFault::new(ExitCode::TryAgain, why);
        }
        if !error.is_connect() {
            return OperatorFault::failed(format!("{socket}: {}", causes(error)));
        }
        let why = causes(error);
        if why.contains("sun_len") {
            let why = format!("{socket}: {}; name a shorter --socket", crate::fault::SOCKET_LONG);
            return OperatorFault::config(why);
        }
        let (code, fix) = match why.contains("permission denied") {
            true => (ExitCode::Privilege, "run this as its user or in its group"),
            false => (ExitCode::Unavailable, "start control serve, or name its --socket"),
        };
        OperatorFault::new(code, format!("{socket}: {why}; {fix}"))
    }

    async fn decode<T: DeserializeOwned>(&self, answer: Response) -> Result<T, OperatorFault> {
        let body = answer.bytes().await.map_err(|error| self.unreachable(&error))?;
        serde_json::from_slice(&body).map_err(|error| {
            let socket = self.socket.display();
            OperatorFault::failed(format!("{socket}: is of another version than this: {error}"))
        })
    }

    /// What is at the path of these words.
    pub(super) async fn get<T: DeserializeOwned>(
        &self,
        words: &[&str],
        query: &[(&str, String)],
    ) -> Result<T, OperatorFault> {
        let mut request = self.request(Method::GET, words)?;
        request = with_query(request, query)?;
        self.decode(self.send(request).await?).await
    }

    /// Sends `body` to the path of these words.
    pub(super) async fn post<T: DeserializeOwned>(
        &self,
        words: &[&str],
        body: &impl Serialize,
    ) -> Result<T, OperatorFault> {
        let request = with_body(self.request(Method::POST, words)?, body)?;
        self.decode(self.send(request).await?).await
    }

    /// Puts `body` at the path of these words, if nothing has changed since `expected`.
    pub(super) async fn put<T: DeserializeOwned>(
        &self,
        words: &[&str],
        query: &[(&str, String)],
        expected: Option<Revision>,
        body: &impl Serialize,
    ) -> Result<T, OperatorFault> {
        let mut request = with_query(self.request(Method::PUT, words)?, query)?;
        if let Some(expected) = expected {
            request = request.header(reqwest::header::IF_MATCH, format!("\"{expected}\""));
        }
        self.decode(self.send(with_body(request, body)?).await?).await
    }

    /// Removes what is at the path of these words.
    pub(super) async fn delete(&self, words: &[&str]) -> Result<(), OperatorFault> {
        self.send(self.request(Method::DELETE, words)?).await.map(drop)
    }

    /// Every row of a kind.
    pub(super) async fn all<R: Resource>(&self) -> Result<Listing<Row<R>>, OperatorFault> {
        let mut query = vec![("limit", PAGE_ROWS.to_string())];
        let mut items = Vec::new();
        loop {
            let page: Listing<Row<R>> = self.get(&[R::PLURAL], &query).await?;
            items.extend(page.items);
            query.truncate(1);
            match page.next_cursor {
                Some(cursor) => query.push(("cursor", cursor)),
                None => {
                    let revision = page.revision;
                    return Ok(Listing { items, next_cursor: None, revision });
                }
            }
        }
    }
}

/// The exit code for a refusal with this status.
fn exit_code(status: StatusCode) -> ExitCode {
    match status {
        StatusCode::NOT_FOUND => ExitCode::NotFound,
        StatusCode::SERVICE_UNAVAILABLE
        | StatusCode::REQUEST_TIMEOUT
        | StatusCode::INSUFFICIENT_STORAGE => ExitCode::TryAgain,
        status if status.is_client_error() => ExitCode::Refused,
        _ => ExitCode::Failed,
    }
}

fn with_query(
    request: RequestBuilder,
    query: &[(&str, String)],
) -> Result<RequestBuilder, OperatorFault> {
    let (client, request) = request.build_split();
    let mut request =
        request.map_err(|error| OperatorFault::failed(format!("request: {error}")))?;
    if !query.is_empty() {
        let mut pairs = request.url_mut().query_pairs_mut();
        pairs.extend_pairs(query);
    }
    Ok(RequestBuilder::from_parts(client, request))
}

fn with_body(
    request: RequestBuilder,
    body: &impl Serialize,
) -> Result<RequestBuilder, OperatorFault> {
    let body = serde_json::to_vec(body)
        .map_err(|error| OperatorFault::failed(format!("request: {error}")))?;
    Ok(request.header(reqwest::header::CONTENT_TYPE, "application/json").body(body))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_pass_by_itself_is_worth_another_try() {
        for (status, code) in [(503, 75), (408, 75), (507, 75), (404, 4), (412, 3), (500, 1)] {
            let status = StatusCode::from_u16(status).expect("it is one");
            assert_eq!(exit_code(status) as u8, code, "{status}");
        }
    }
}
