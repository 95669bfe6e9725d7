//! One connection to control: hello, orders and answers, signs of life, until it ends.

use std::io;
use std::time::Duration;

use steer::{LINE_BYTES_MAX, Lines, PROTOCOL, REPORT_EVERY, SILENCE, Said};
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout};

use super::dial::Stream;
use super::helm::{Helm, Obeyed};
use crate::config::steering::Control;

/// Bytes read at once.
const PIECE_BYTES: usize = 64 << 10;
/// Time for control to take an answer.
const ANSWER: Duration = SILENCE;

/// How a connection ended.
pub(super) struct Ended {
    /// Whether control said anything that could be read.
    pub(super) heard: bool,
    /// Why, in words.
    pub(super) why: String,
}

/// Holds the conversation over `stream` until it ends.
pub(super) async fn hold(
    stream: impl Stream,
    helm: &mut Helm,
    control: &Control,
    node: &str,
) -> Ended {
    let mut heard = false;
    let mut on_heard = |helm: &Helm| {
        if !std::mem::replace(&mut heard, true) {
            helm.cells().connected.set(1);
            let revision = helm.in_force().map_or(0, |snapshot| snapshot.revision.0);
            tracing::info!(%control, node, revision, "control answers");
        }
    };
    let why = match converse(stream, helm, node, &mut on_heard).await {
        Ok(goodbye) => format!("it said goodbye: {goodbye}"),
        Err(error) => error.to_string(),
    };
    Ended { heard, why }
}

/// Gives the reason of control's goodbye.
async fn converse(
    stream: impl Stream,
    helm: &mut Helm,
    node: &str,
    on_heard: &mut impl FnMut(&Helm),
) -> io::Result<String> {
    let (mut reader, mut writer) = tokio::io::split(stream);
    let mut lines = Lines::new(LINE_BYTES_MAX);
    let mut piece = vec![0; PIECE_BYTES];
    say(&mut writer, &hello(helm, node)).await?;
    let mut reports = interval(REPORT_EVERY);
    reports.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut patience = Instant::now() + SILENCE;
    loop {
        tokio::select! {
            read = reader.read(&mut piece) => {
                let count = read?;
                if count == 0 {
                    let amid = if lines.begun_bytes() > 0 { " amid a line" } else { "" };
                    return Err(io::Error::other(format!("it hung up{amid}")));
                }
                patience = Instant::now() + SILENCE;
                let fits = lines.push(&piece[..count]);
                while let Some(line) = lines.pop() {
                    let obeyed = helm.obey(&line);
                    helm.keep();
                    match obeyed {
                        Obeyed::Answer(said) => {
                            on_heard(helm);
                            say(&mut writer, &said).await?;
                        }
                        Obeyed::Refuse(said) => say(&mut writer, &said).await?,
                        Obeyed::Noted => on_heard(helm),
                        Obeyed::Goodbye(why) => return Ok(why),
                    }
                }
                fits.map_err(io::Error::other)?;
            }
            () = helm.kept() => {}
            _ = reports.tick() => {
                helm.keep();
                say(&mut writer, &helm.report()).await?;
            }
            () = sleep_until(patience) => {
                return Err(io::Error::other(format!("it was silent for {SILENCE:?}")));
            }
        }
    }
}

fn hello(helm: &Helm, node: &str) -> Said {
    let in_force = helm.in_force();
    Said::Hello {
        protocol: PROTOCOL,
        node: node.to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        store: in_force.map(|snapshot| snapshot.store.clone()),
        revision: in_force.map(|snapshot| snapshot.revision).unwrap_or_default(),
        past: in_force.map(|snapshot| snapshot.past.clone()).unwrap_or_default(),
    }
}

async fn say(writer: &mut (impl AsyncWrite + Unpin), said: &Said) -> io::Result<()> {
    let line = said.to_line();
    let written = timeout(ANSWER, async {
        writer.write_all(line.as_bytes()).await?;
        writer.flush().await
    });
    written.await.unwrap_or_else(|_| Err(io::Error::other("it takes no answer")))
}
