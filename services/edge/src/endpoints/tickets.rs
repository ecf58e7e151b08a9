//! POST /api/tickets: opens event streams for clients that send no headers.

use serde::Serialize;
use utoipa::ToSchema;

use super::{Answer, ok};
use crate::{body::NoQuery, keys::Access, openapi::QuestionError, view::Time};

#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = TicketAnswer)]
pub(crate) struct Response {
    success: bool,
    /// The value of the parameter `ticket` of an event stream. Absent while no API key is needed: then a stream needs no
    /// ticket either.
    #[serde(skip_serializing_if = "Option::is_none")]
    ticket: Option<String>,
    /// When the ticket expires, a minute later. Streams that were opened with it go on.
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at: Option<Time>,
}

/// Makes a ticket for event streams (`events`, `live`): the `EventSource` of browsers sends no API key. It allows what the API key of
/// this request allows, and ends with it.
#[utoipa::path(
    post, path = "/api/tickets", tag = "queue",
    responses((status = 200, description = "It is made.", body = Response), QuestionError),
)]
pub(crate) async fn create_ticket(access: Access, _: NoQuery) -> Answer<Response> {
    let ticket = access.ticket(service::now_ms());
    let (ticket, until) = ticket.unzip();
    ok(Response { success: true, ticket, expires_at: until.map(Time) })
}
