//! Reading again what lies outside the store, by signal or by request.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Control;
use super::api::Ask;
use super::problem::{Code, Problem};
use crate::fault::OperatorFault;
use crate::resource::Scope;

/// What came of a reload.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct Reloaded {
    /// Addresses of maps that gave none this time; their last ones stay.
    pub silent: Vec<String>,
}

impl Control {
    /// Reads files again and asks URLs; what cannot be taken changes nothing.
    pub(super) async fn reload(&self) -> Result<Reloaded, OperatorFault> {
        let read = self.board.reload();
        match &read {
            Ok(()) => tracing::info!("DERP map files read again"),
            Err(fault) => tracing::error!(%fault, "DERP map files stay as they were"),
        }
        self.board.fetch().await;
        read.map(|()| Reloaded { silent: self.board.silent() })
    }
}

/// `POST /api/v1/reload`.
pub(super) async fn serve(ask: Ask) -> Result<axum::Json<Reloaded>, Problem> {
    ask.admit(Scope::Operate).await?;
    let reloaded = ask.control.reload().await;
    reloaded
        .map(axum::Json)
        .map_err(|fault| Problem::new(Code::InvalidField, format!("{fault}; the old stay")))
}
