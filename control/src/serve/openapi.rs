//! The OpenAPI document of `/api/v1`, made from the types.
//!
//! Owns [`document`]. A copy is committed as `control/openapi.json`, and a test fails when the two
//! differ, so that no change of the API goes unseen.

use axum::http::header;
use axum::response::{IntoResponse, Response};
use serde_json::Value;
use utoipa::openapi::path::{
    HttpMethod, Operation, OperationBuilder, Parameter, ParameterBuilder, ParameterIn, PathItem,
    PathItemBuilder, PathsBuilder,
};
use utoipa::openapi::request_body::{RequestBody, RequestBodyBuilder};
use utoipa::openapi::schema::{ArrayBuilder, ComponentsBuilder, Object, Ref, Schema, Type};
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{
    ContentBuilder, InfoBuilder, OpenApi, OpenApiBuilder, RefOr, Required, ResponseBuilder,
};
use utoipa::{PartialSchema, ToSchema};

use super::prober::HealthListing;
use super::problem::Problem;
use super::{
    AuditListing, DataplaneListing, Listing, MapState, NewToken, Published, Reloaded, WatchEvent,
};
use crate::resource::{
    Certificate, Client, Link, Node, Peer, Policy, Region, Resource, Row, Satellite, Token,
};

const JSON: &str = "application/json";
const PROBLEM: &str = "application/problem+json";
const TOKEN: &str = "token";

/// The document, as text that ends with a line feed.
///
/// # Panics
/// Never: the document is plain data.
#[must_use]
pub fn document() -> String {
    let mut document = serde_json::to_value(build()).expect("plain data has a JSON form");
    open(&mut document);
    format!("{document:#}\n")
}

/// Takes out that objects have no further fields: a row is a resource's object with more.
fn open(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            if fields.get("additionalProperties") == Some(&Value::Bool(false)) {
                fields.remove("additionalProperties");
            }
            fields.values_mut().for_each(open);
        }
        Value::Array(items) => items.iter_mut().for_each(open),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// `GET /api/v1/openapi.json`.
pub(super) async fn serve(ask: super::api::Ask) -> Result<Response, Problem> {
    ask.admit(crate::resource::Scope::Read).await?;
    Ok(([(header::CONTENT_TYPE, JSON)], document()).into_response())
}

fn build() -> OpenApi {
    let mut parts = Parts::default();
    parts.kind::<Satellite>();
    parts.kind::<Region>();
    parts.kind::<Node>();
    parts.kind::<Peer>();
    parts.kind::<Link>();
    parts.kind::<Token>();
    parts.kind::<Client>();
    parts.kind::<Policy>();
    parts.kind::<Certificate>();
    parts.rest();
    let about = "Registrations, the DERP map and their changes. Over the unix socket no token is \
                 needed; elsewhere every request carries one of ours.";
    let info =
        InfoBuilder::new().title("Perigee control").version("1").description(Some(about)).build();
    let mut components = ComponentsBuilder::new()
        .security_scheme(TOKEN, SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer)));
    parts.schemas.sort_by(|one, other| one.0.cmp(&other.0));
    for (name, schema) in parts.schemas {
        components = components.schema(name, schema);
    }
    let paths = parts
        .paths
        .into_iter()
        .fold(PathsBuilder::new(), |paths, (path, item)| paths.path(path, item));
    OpenApiBuilder::new()
        .info(info)
        .paths(paths.build())
        .components(Some(components.build()))
        .security(Some([SecurityRequirement::new::<_, [&str; 0], &str>(TOKEN, [])]))
        .build()
}

/// The document under construction.
#[derive(Default)]
struct Parts {
    paths: Vec<(String, PathItem)>,
    schemas: Vec<(String, RefOr<Schema>)>,
}

impl Parts {
    fn kind<R: Resource>(&mut self) {
        let word = R::KIND.word();
        let many = format!("/api/v1/{}", R::PLURAL);
        let one = format!("{many}/{{id}}");
        let list =
            operation(&format!("list_{}", R::PLURAL), R::PLURAL, &format!("{word}s by name"))
                .parameter(query("limit", Type::Integer, "Rows of a page; 100 if left out."))
                .parameter(query("cursor", Type::String, "next_cursor of the page before."));
        let (row, listing) = self.rows::<R>();
        let list = self.answer(list, "200", "A page.", listing);
        let create = operation(&format!("create_{word}"), R::PLURAL, &format!("Make a {word}"))
            .parameter(request_header("Idempotency-Key", "Do it once, however often it is sent."))
            .request_body(Some(self.body::<R>()));
        let create = match R::PLURAL == Token::PLURAL {
            true => self.answers::<NewToken>(create, "201", "Made; its text is shown this once."),
            false => self.answer(create, "201", "Made.", row.clone()),
        };
        let item = PathItemBuilder::new()
            .operation(HttpMethod::Get, list)
            .operation(HttpMethod::Post, create);
        self.paths.push((many, item.build()));

        let expected = || request_header("If-Match", "Only if it is still at this ETag.");
        let read = operation(&format!("read_{word}"), R::PLURAL, &format!("One {word}"));
        let read = self.answer(read.parameter(id()), "200", "It.", row.clone());
        let replace = operation(&format!("replace_{word}"), R::PLURAL, &format!("Change a {word}"))
            .parameter(id())
            .parameter(expected())
            .request_body(Some(self.body::<R>()));
        let replace = self.answer(replace, "200", "It, as it is now.", row);
        let remove = operation(&format!("remove_{word}"), R::PLURAL, &format!("Remove a {word}"))
            .parameter(id())
            .parameter(expected())
            .response("204", ResponseBuilder::new().description("Removed.").build());
        let remove = self.refusals(remove);
        let item = PathItemBuilder::new()
            .operation(HttpMethod::Get, read)
            .operation(HttpMethod::Put, replace)
            .operation(HttpMethod::Delete, remove);
        self.paths.push((one, item.build()));
    }

    fn rest(&mut self) {
        let map = operation("read_derp_map", "derpmap", "The DERP map in service, and its state");
        let map = self.answers::<MapState>(map, "200", "The map.");
        let body = ContentBuilder::new().schema(Some(Object::with_type(Type::Object))).build();
        let body = RequestBodyBuilder::new()
            .description(Some("A DERP map in Tailscale's form."))
            .required(Some(Required::True))
            .content(JSON, body)
            .build();
        let publish = operation(
            "publish_derp_map",
            "derpmap",
            "Make control's own regions and nodes those of a map, all or none",
        )
        .parameter(query("dry_run", Type::Boolean, "Only tell what would change."))
        .parameter(request_header(
            "If-Match",
            "Only if no region or node has changed since this revision.",
        ))
        .request_body(Some(body));
        let publish = self.answers::<Published>(publish, "200", "What has changed.");
        let item = PathItemBuilder::new()
            .operation(HttpMethod::Get, map)
            .operation(HttpMethod::Put, publish);
        self.paths.push(("/api/v1/derpmap".into(), item.build()));

        let audit = operation("list_audit", "audit", "Who changed what, the latest first")
            .parameter(query("limit", Type::Integer, "Entries; 100 if left out."))
            .parameter(query("before", Type::Integer, "Only those before this revision."));
        let audit = self.answers::<AuditListing>(audit, "200", "The entries.");
        self.paths.push(("/api/v1/audit".into(), PathItem::new(HttpMethod::Get, audit)));

        let reload =
            operation("reload", "reload", "Read map files again and ask map URLs, as SIGHUP does");
        let reload = self.answers::<Reloaded>(reload, "200", "What came of it.");
        self.paths.push(("/api/v1/reload".into(), PathItem::new(HttpMethod::Post, reload)));
        let dataplanes =
            operation("list_dataplanes", "dataplanes", "Connected dataplanes, by node");
        let dataplanes = self.answers::<DataplaneListing>(dataplanes, "200", "Who is connected.");
        let item = PathItem::new(HttpMethod::Get, dataplanes);
        self.paths.push(("/api/v1/dataplanes".into(), item));
        let health = operation("list_health", "health", "How nodes and satellites are")
            .parameter(query("kind", Type::String, "Only these: node or satellite."));
        let health = self.answers::<HealthListing>(health, "200", "All of them, at one look.");
        self.paths.push(("/api/v1/health".into(), PathItem::new(HttpMethod::Get, health)));

        self.add::<WatchEvent>();
        let about = "Events `change` (data: WatchEvent), `reset` (forget everything known) and \
                     `upto` (all changes so far are told). Ids are what to resume from: a revision \
                     and a word for its past, REVISION-WORD. Where the store was put back to a \
                     backup meanwhile, the word is another, and `reset` comes first; a revision \
                     alone cannot tell.";
        let stream = ContentBuilder::new().schema(Some(Object::with_type(Type::String))).build();
        let stream = ResponseBuilder::new().description(about).content("text/event-stream", stream);
        let watch = operation("watch", "watch", "What changes, as server-sent events")
            .parameter(query(
                "from",
                Type::String,
                "Changes after this revision, or this event's id; 0 for all.",
            ))
            .parameter(request_header("Last-Event-ID", "As from, when a stream is resumed."))
            .response("200", stream.build());
        let watch = self.refusals(watch);
        self.paths.push(("/api/v1/watch".into(), PathItem::new(HttpMethod::Get, watch)));
    }

    /// A reference to the schema of `T`, which is taken along with those it needs.
    fn add<T: ToSchema>(&mut self) -> RefOr<Schema> {
        let name = T::name().into_owned();
        let mut found = vec![(name.clone(), T::schema())];
        T::schemas(&mut found);
        for (name, schema) in found {
            if !self.schemas.iter().any(|(known, _)| *known == name) {
                self.schemas.push((name, schema));
            }
        }
        RefOr::Ref(Ref::from_schema_name(name))
    }

    /// References to the schemas of a kind's rows and lists. A generic type calls itself the same
    /// whatever it is of, so these get names of their own.
    fn rows<R: Resource>(&mut self) -> (RefOr<Schema>, RefOr<Schema>) {
        let kind = <R as ToSchema>::name();
        let (row, listing) = (format!("Row_{kind}"), format!("Listing_{kind}"));
        self.add::<Row<R>>();
        self.schemas.retain(|(name, _)| *name != Row::<R>::name());
        let mut schema = Listing::<Row<R>>::schema();
        if let RefOr::T(Schema::Object(object)) = &mut schema {
            let of_rows = ArrayBuilder::new().items(Ref::from_schema_name(&row));
            object.properties.insert("items".to_owned(), of_rows.into());
        }
        self.schemas.retain(|(name, _)| *name != row);
        self.schemas.push((row.clone(), Row::<R>::schema()));
        self.schemas.push((listing.clone(), schema));
        let [row, listing] = [row, listing].map(|name| RefOr::Ref(Ref::from_schema_name(name)));
        (row, listing)
    }

    fn body<T: ToSchema>(&mut self) -> RequestBody {
        let content = ContentBuilder::new().schema(Some(self.add::<T>())).build();
        RequestBodyBuilder::new().required(Some(Required::True)).content(JSON, content).build()
    }

    fn answers<T: ToSchema>(
        &mut self,
        operation: OperationBuilder,
        status: &str,
        about: &str,
    ) -> Operation {
        let schema = self.add::<T>();
        self.answer(operation, status, about, schema)
    }

    fn answer(
        &mut self,
        operation: OperationBuilder,
        status: &str,
        about: &str,
        schema: RefOr<Schema>,
    ) -> Operation {
        let content = ContentBuilder::new().schema(Some(schema)).build();
        let answer = ResponseBuilder::new().description(about).content(JSON, content).build();
        self.refusals(operation.response(status, answer))
    }

    fn refusals(&mut self, operation: OperationBuilder) -> Operation {
        let content = ContentBuilder::new().schema(Some(self.add::<Problem>())).build();
        let refusal = ResponseBuilder::new().description("Refused.").content(PROBLEM, content);
        operation.response("default", refusal.build()).build()
    }
}

fn operation(id: &str, tag: &str, summary: &str) -> OperationBuilder {
    OperationBuilder::new().operation_id(Some(id)).tag(tag).summary(Some(summary))
}

fn id() -> Parameter {
    parameter("id", ParameterIn::Path, "Its id, or its name.")
        .required(Required::True)
        .schema(Some(Object::with_type(Type::String)))
        .build()
}

fn query(name: &str, kind: Type, about: &str) -> Parameter {
    parameter(name, ParameterIn::Query, about).schema(Some(Object::with_type(kind))).build()
}

fn request_header(name: &str, about: &str) -> Parameter {
    parameter(name, ParameterIn::Header, about)
        .schema(Some(Object::with_type(Type::String)))
        .build()
}

fn parameter(name: &str, place: ParameterIn, about: &str) -> ParameterBuilder {
    ParameterBuilder::new()
        .name(name)
        .parameter_in(place)
        .required(Required::False)
        .description(Some(about))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_committed_document_is_that_of_the_types() {
        let committed = include_str!("../../openapi.json");
        assert!(
            committed == document(),
            "control/openapi.json differs; look at what `control openapi` prints and commit that"
        );
    }

    #[test]
    fn every_reference_leads_somewhere() {
        let text = document();
        let value: Value = serde_json::from_str(&text).expect("it is JSON");
        let known = value["components"]["schemas"].as_object().expect("there are schemas");
        for part in text.split("#/components/schemas/").skip(1) {
            let name = part.split('"').next().expect("a reference ends");
            assert!(known.contains_key(name), "{name}");
        }
    }
}
