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
    /// Addresses of maps that gave none this time, and why; their last ones stay.
    pub silent: Vec<String>,
    /// Why the map in service stays as it was; absent if it is what all say now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault: Option<String>,
}

impl Control {
    /// Reads files again and asks URLs; if one file cannot be taken, none is.
    pub(super) async fn reload(&self) -> Result<Reloaded, OperatorFault> {
        let read = self.read_again();
        match &read {
            Ok(()) => tracing::info!("DERP map files and certificates read again"),
            Err(fault) => tracing::error!(%fault, "all files stay as they were"),
        }
        self.prober.forget_authorities().await;
        let silent = self.board.fetch().await;
        read?;
        let fault = match self.board.current(&*self.store).await {
            Ok(current) => current.fault.clone(),
            Err(problem) => Some(problem.detail),
        };
        Ok(Reloaded { silent, fault })
    }

    fn read_again(&self) -> Result<(), OperatorFault> {
        let door = self.steering.tls.as_ref();
        let read = door.map(|door| Ok((door, door.read()?))).transpose()?;
        self.board.reload()?;
        if let Some((door, read)) = read {
            door.change(read);
        }
        Ok(())
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
