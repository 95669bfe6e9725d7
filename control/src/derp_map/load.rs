//! Maps from files and URLs, in JSON or YAML.

use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use super::{DerpMap, MAP_BYTES_MAX, MapFault, Source};
use crate::fault::{OperatorFault, plain};
use crate::file::read_text;
use crate::json;

/// Time for a whole map to come from a URL.
const FETCH: Duration = Duration::from_secs(20);

/// The map in `text`: JSON if it begins like JSON, else YAML.
///
/// # Errors
/// When it is neither, or no map.
pub fn parse(text: &str) -> Result<DerpMap, MapFault> {
    if text.len() > MAP_BYTES_MAX {
        return Err(MapFault::new(format!("is longer than {MAP_BYTES_MAX} bytes")));
    }
    let value: Value = match text.trim_start().starts_with('{') {
        true => json::parse(text.as_bytes()).map_err(MapFault::new)?,
        false => serde_saphyr::from_str(text).map_err(|error| MapFault::new(yaml_words(&error)))?,
    };
    DerpMap::from_value(value)
}

/// What is wrong with YAML, in words for people.
fn yaml_words(error: &serde_saphyr::Error) -> String {
    let report = error.render_with_formatter(&serde_saphyr::UserMessageFormatter);
    let line = report.lines().next().unwrap_or_default();
    json::in_words(line.split(": limits breached").next().unwrap_or(line))
}

/// The map in the file at `path`.
///
/// # Errors
/// When it cannot be read, or is no map.
pub fn file(path: &Path) -> Result<Source, OperatorFault> {
    let place = path.display().to_string();
    if place == "-" {
        return Err(OperatorFault::config("-: standard input is not read; name a file"));
    }
    let text = read_text(path, MAP_BYTES_MAX).map_err(|error| {
        OperatorFault::file(path, &error, "name a readable DERP map in JSON or YAML")
    })?;
    let map = parse(&text).map_err(|fault| OperatorFault::config(format!("{place}: {fault}")))?;
    Ok(Source { place, map })
}

/// The map at `url`.
///
/// # Errors
/// One line that begins with the URL.
pub async fn url(client: &reqwest::Client, url: &str) -> Result<Source, String> {
    let fetch = async {
        let mut answer = client.get(url).send().await?.error_for_status()?;
        let mut bytes = Vec::new();
        while let Some(chunk) = answer.chunk().await? {
            bytes.extend_from_slice(&chunk);
            if bytes.len() > MAP_BYTES_MAX {
                break;
            }
        }
        Ok::<_, reqwest::Error>(bytes)
    };
    let bytes = match tokio::time::timeout(FETCH, fetch).await {
        Ok(Ok(bytes)) => bytes,
        Ok(Err(error)) => return Err(format!("{url}: {}", causes(&error))),
        Err(_) => return Err(format!("{url}: no answer within {} s", FETCH.as_secs())),
    };
    let text = String::from_utf8(bytes).map_err(|_| format!("{url}: is not UTF-8"))?;
    let map = parse(&text).map_err(|fault| format!("{url}: {fault}"))?;
    Ok(Source { place: url.to_owned(), map })
}

/// What is behind an error of the HTTP client, without the URL that it repeats.
pub(crate) fn causes(error: &reqwest::Error) -> String {
    if let Some(status) = error.status() {
        return format!("answered {status}");
    }
    let mut words = Vec::new();
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        words.push(inner.to_string());
        cause = inner.source();
    }
    match words.pop() {
        Some(last) => plain(&last),
        None => error.to_string(),
    }
}
