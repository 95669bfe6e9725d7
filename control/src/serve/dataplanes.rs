//! `GET /api/v1/dataplanes`: who is connected and how each keeps up.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::api::Ask;
use super::problem::Problem;
use crate::resource::Scope;
use crate::steering::Dataplane;
use crate::store::Revision;

/// Who is connected.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct DataplaneListing {
    /// The dataplanes, by node. A node has two for a moment when one takes over from another.
    pub items: Vec<Dataplane>,
    /// The store's revision at this look.
    pub revision: Revision,
}

/// See the module.
pub(crate) async fn list(ask: Ask) -> Result<axum::Json<DataplaneListing>, Problem> {
    ask.admit(Scope::Read).await?;
    let revision = *ask.control.store.revisions().borrow();
    let items = ask.control.steering.dataplanes();
    Ok(axum::Json(DataplaneListing { items, revision }))
}
