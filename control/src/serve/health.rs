//! `/livez`, `/readyz` with its reasons, and `/metrics`.

use std::sync::Arc;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::api::Ask;
use super::counters::{Gauges, page};
use super::problem::Problem;
use super::{Control, WATCHES_MAX};
use crate::resource::Scope;

/// The process runs and answers.
pub(crate) async fn live() -> &'static str {
    "live\n"
}

/// Whether everything control serves is what it should be; a line for each thing that is not.
pub(crate) async fn ready(State(control): State<Arc<Control>>) -> Response {
    let reasons = reasons(&control).await;
    if reasons.is_empty() {
        return "ready\n".into_response();
    }
    let text = reasons.iter().map(|reason| format!("{reason}\n")).collect::<String>();
    (StatusCode::SERVICE_UNAVAILABLE, text).into_response()
}

async fn reasons(control: &Control) -> Vec<String> {
    let mut reasons = Vec::new();
    if *control.stop.borrow() {
        reasons.push("stopping".to_owned());
    }
    if let Err(fault) = control.store.counts().await {
        reasons.push(format!("store: {fault}"));
    }
    match control.board.current(&*control.store).await {
        Ok(current) => reasons.extend(current.fault.iter().map(|why| format!("DERP map: {why}"))),
        Err(problem) => reasons.push(format!("DERP map: {}", problem.detail)),
    }
    reasons.extend(control.board.silent().iter().map(|why| format!("DERP map: {why}")));
    reasons
}

/// Counters for Prometheus.
pub(crate) async fn metrics(ask: Ask) -> Result<Response, Problem> {
    ask.admit(Scope::Read).await?;
    let control = &ask.control;
    let current = control.board.current(&*control.store).await.ok();
    let records = control.store.counts().await?;
    let revision = *control.store.revisions().borrow();
    let gauges = Gauges {
        revision,
        records,
        map: current.as_ref().map(|now| (now.map.regions.len(), now.map.nodes())),
        map_is_current: current.is_some_and(|now| now.fault.is_none()),
        watches: WATCHES_MAX - control.watches.available_permits(),
    };
    let kind = [(header::CONTENT_TYPE, "text/plain; version=0.0.4")];
    Ok((kind, page(&control.counters, &gauges)).into_response())
}
