//! `control top`: what a dataplane does, second by second.
//!
//! Owns asking a dataplane for its metrics page, and the keys. It asks the dataplane alone and never
//! control, so that it helps while control is stuck.

use std::net::IpAddr;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use ratatui::{DefaultTerminal, Frame};
use reqwest::Url;
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;

use super::output::Output;
use crate::derp_map::load::causes;
use crate::fault::{ExitCode, OperatorFault};
use crate::top::screen::{Around, draw};
use crate::top::{Look, PAGE_BYTES_MAX, Page};

/// Between two looks.
const PERIOD: Duration = Duration::from_secs(1);
/// Time for a page.
const PATIENCE: Duration = Duration::from_secs(5);
/// How soon the thread that waits for keys notices that nobody wants them any more.
const KEY_WAIT: Duration = Duration::from_millis(100);

/// Shows the dataplane at `address` until somebody presses `q`; to what is no terminal, or as JSON,
/// once.
pub(super) async fn run(address: &str, output: &Output) -> Result<(), OperatorFault> {
    let source = Source::new(address)?;
    if output.is_json() || !output.is_terminal() {
        let (first, at) = (source.page().await?, Instant::now());
        tokio::time::sleep(PERIOD).await;
        let look = Look::between(&first, &source.page().await?, at.elapsed());
        return output.show(&look, &plain(&source, &look));
    }
    let mut terminal = ratatui::try_init()
        .map_err(|error| OperatorFault::failed(format!("cannot use the terminal: {error}")))?;
    let ended = watch(&source, &mut terminal, output).await;
    ratatui::restore();
    ended.map_err(|error| OperatorFault::failed(format!("terminal: {error}")))
}

/// A screen's worth as text.
fn plain(source: &Source, look: &Look) -> String {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;
    let Ok(mut terminal) = Terminal::new(TestBackend::new(120, 30));
    let around = Around { source: source.name(), trouble: None, paused: true, colours: false };
    let Ok(_) = terminal.draw(|frame| draw(frame, Some(look), &around));
    let rows = terminal.backend().to_string();
    let rows = rows.lines().map(|row| row.trim_matches('"').trim_end());
    let mut rows: Vec<_> = rows.collect();
    // The keys are for terminals.
    rows.pop();
    rows.join("\n").trim_end().to_owned()
}

/// Where pages come from.
struct Source {
    http: reqwest::Client,
    url: Url,
}

impl Source {
    fn new(address: &str) -> Result<Self, OperatorFault> {
        let wrong = |why: &str| {
            OperatorFault::usage(format!(
                "{address}: {why}; write http:// or https:// and where the dataplane listens"
            ))
        };
        let mut url = Url::parse(address).map_err(|error| wrong(&error.to_string()))?;
        if !["http", "https"].contains(&url.scheme()) {
            return Err(wrong("is no web address"));
        }
        let host = url.host_str().ok_or_else(|| wrong("names no host"))?;
        let host = host.trim_matches(['[', ']']);
        let is_here = host == "localhost"
            || host.parse().is_ok_and(|ip: IpAddr| ip.to_canonical().is_loopback());
        url.set_path("/metrics");
        let built = reqwest::Client::builder()
            .timeout(PATIENCE)
            .no_proxy()
            // A dataplane without certificate files makes one itself; on this host nobody else
            // can take its place.
            .tls_danger_accept_invalid_certs(is_here)
            .build();
        let http =
            built.map_err(|error| OperatorFault::failed(format!("no HTTP client: {error}")))?;
        Ok(Self { http, url })
    }

    fn name(&self) -> &str {
        self.url.as_str().trim_end_matches("/metrics")
    }

    async fn page(&self) -> Result<Page, OperatorFault> {
        let failed =
            |code, why: String| OperatorFault::new(code, format!("{}: {why}", self.name()));
        let unreachable = |error: reqwest::Error| {
            let why = causes(&error);
            failed(
                ExitCode::Unavailable,
                format!("{why}; start the dataplane, or name where it listens"),
            )
        };
        let mut answer = self.http.get(self.url.clone()).send().await.map_err(unreachable)?;
        if !answer.status().is_success() {
            let why =
                format!("answered {}; it tells numbers to its own host alone", answer.status());
            return Err(failed(ExitCode::Refused, why));
        }
        let mut body = Vec::new();
        while let Some(chunk) = answer.chunk().await.map_err(unreachable)? {
            if body.len() + chunk.len() > PAGE_BYTES_MAX {
                return Err(failed(ExitCode::Failed, "its page has no end".to_owned()));
            }
            body.extend_from_slice(&chunk);
        }
        let page = Page::read(&String::from_utf8_lossy(&body));
        match page.is_ours() {
            true => Ok(page),
            false => Err(failed(ExitCode::Refused, "this is no dataplane".to_owned())),
        }
    }
}

/// What is on the screen.
#[derive(Default)]
struct Shown {
    before: Option<(Page, Instant)>,
    look: Option<Look>,
    trouble: Option<String>,
    paused: bool,
}

impl Shown {
    fn take(&mut self, page: Result<Page, OperatorFault>) {
        let page = match page {
            Ok(page) => page,
            Err(fault) => return self.trouble = Some(fault.to_string()),
        };
        self.trouble = None;
        let now = Instant::now();
        if let Some((before, at)) = &self.before
            && !self.paused
        {
            self.look = Some(Look::between(before, &page, now - *at));
        }
        self.before = Some((page, now));
    }

    fn draw(&self, frame: &mut Frame<'_>, source: &Source, colours: bool) {
        let trouble = self.trouble.as_deref();
        let around = Around { source: source.name(), trouble, paused: self.paused, colours };
        draw(frame, self.look.as_ref(), &around);
    }

    /// Does what an event asks for; the end, if it is that.
    fn obey(&mut self, event: &Event) -> ControlFlow<()> {
        let Event::Key(key) = event else { return ControlFlow::Continue(()) };
        if key.kind == KeyEventKind::Release {
            return ControlFlow::Continue(());
        }
        match key.code {
            KeyCode::Char('q') | KeyCode::Esc => ControlFlow::Break(()),
            KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => {
                ControlFlow::Break(())
            }
            KeyCode::Char('p') => {
                self.paused = !self.paused;
                ControlFlow::Continue(())
            }
            _ => ControlFlow::Continue(()),
        }
    }
}

async fn watch(
    source: &Source,
    terminal: &mut DefaultTerminal,
    output: &Output,
) -> std::io::Result<()> {
    let mut events = events();
    let mut period = tokio::time::interval(PERIOD);
    // Pages that came late are not made up for, or their rates would be of moments.
    period.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut shown = Shown::default();
    // A page under way neither holds up the keys nor is asked for twice.
    let mut asking = None;
    loop {
        terminal.draw(|frame| shown.draw(frame, source, output.colours()))?;
        tokio::select! {
            _ = period.tick(), if asking.is_none() => asking = Some(Box::pin(source.page())),
            page = async { asking.as_mut().expect("it is asked for").await }, if asking.is_some() => {
                asking = None;
                shown.take(page);
            }
            event = events.recv() => match event {
                Some(event) if shown.obey(&event).is_continue() => {}
                Some(_) | None => return Ok(()),
            },
        }
    }
}

/// What happens at the terminal, told by a thread that ends when nobody listens.
fn events() -> mpsc::Receiver<Event> {
    let (tell, told) = mpsc::channel(16);
    std::thread::spawn(move || {
        while !tell.is_closed() {
            let event = match event::poll(KEY_WAIT) {
                Ok(true) => event::read(),
                Ok(false) => continue,
                Err(error) => Err(error),
            };
            // A terminal that is gone ends the whole.
            let Ok(event) = event else { return };
            if tell.blocking_send(event).is_err() {
                return;
            }
        }
    });
    told
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_web_address_is_refused_in_words() {
        for wrong in ["", "127.0.0.1:8443", "ftp://here", "unix:/run/x"] {
            let fault = Source::new(wrong).err().expect("it is wrong");
            assert_eq!(fault.code(), ExitCode::Usage);
            assert!(fault.to_string().contains("http"), "{fault}");
        }
        assert_eq!(Source::new("https://[::1]:8443").expect("right").name(), "https://[::1]:8443");
    }

    #[test]
    fn a_pause_keeps_the_screen_and_q_ends() {
        let key = |letter| Event::Key(KeyCode::Char(letter).into());
        let mut shown = Shown::default();
        assert!(shown.obey(&key('p')).is_continue() && shown.paused);
        shown.take(Ok(Page::read("relay_sessions 1\n")));
        shown.take(Ok(Page::read("relay_sessions 1\n")));
        assert_eq!(shown.look, None);
        assert!(shown.obey(&key('p')).is_continue() && !shown.paused);
        shown.take(Ok(Page::read("relay_sessions 2\n")));
        assert_eq!(shown.look.as_ref().map(|look| look.sessions), Some(2));
        shown.take(Err(OperatorFault::failed("gone")));
        assert_eq!((shown.trouble.as_deref(), shown.look.is_some()), (Some("gone"), true));
        assert!(shown.obey(&key('q')).is_break());
    }
}
