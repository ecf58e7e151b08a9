//! The HTTP interface: parameters in, rows or ClickHouse's own error out.

use anyhow::Context;
use axum::{
    Router,
    body::{Body, to_bytes},
    extract::{RawQuery, Request, State},
    http::{
        HeaderMap, StatusCode,
        header::{CONTENT_ENCODING, CONTENT_TYPE},
    },
    response::{IntoResponse, Response},
    routing::get,
};
use bytes::Bytes;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::{
    Config,
    access::{Passwords, User},
    engine::{Ask, Engine},
    statement::{self, Invalid},
};

/// The largest body of a request, in bytes: a statement or a block of rows.
const BODY_BYTES_MAX: usize = 256 * 1024 * 1024;
const COMPRESSED: &str =
    "no compressed bodies: let the client compress neither statements and rows nor answers";
/// Parameters of the interface itself that need nothing done here.
/// Sessions hold nothing: statements that would change one are refused.
const IGNORED: [&str; 11] = [
    "buffer_size",
    "client_protocol_version",
    "password",
    "query_id",
    "quota_key",
    "role",
    "session_id",
    "session_timeout",
    "user",
    "wait_end_of_query",
    "send_progress_in_http_headers",
];

/// Serves until `stop` is cancelled, then closes the tables in order.
///
/// # Errors
/// If the library cannot be loaded, the tables cannot be opened, or the address cannot be listened
/// on.
pub async fn run(config: Config, stop: CancellationToken) -> anyhow::Result<()> {
    let passwords = Passwords::read(&config.writer_password_file, &config.password_file)?;
    let (library, dir) = (config.libchdb.clone(), config.dir.clone());
    let started = tokio::task::spawn_blocking(move || Engine::start(&library, &dir)).await?;
    let (engine, threads) = started?;
    let listener = TcpListener::bind(config.listen).await;
    let listener = listener.with_context(|| format!("cannot listen on {}", config.listen))?;
    tracing::info!(listen = %config.listen, "olap serves");
    let router = Router::new()
        .route("/ping", get(ping))
        .route("/", get(answer).post(answer))
        .with_state(Interface { engine, passwords });
    let served = axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned());
    let ended = served.await;
    tokio::task::spawn_blocking(move || threads.join()).await?;
    tracing::info!("olap closed its tables");
    Ok(ended?)
}

/// The engine, and the passwords of its users.
#[derive(Clone)]
struct Interface {
    engine: Engine,
    passwords: Passwords,
}

async fn ping() -> &'static str {
    "Ok.\n"
}

async fn answer(
    State(Interface { engine, passwords }): State<Interface>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    request: Request,
) -> Response {
    let post = request.method() == axum::http::Method::POST;
    let query = query.unwrap_or_default();
    let mut pairs: Vec<_> = form_urlencoded::parse(query.as_bytes()).into_owned().collect();
    if !post && !pairs.iter().any(|(name, _)| name == "query") {
        return ping().await.into_response();
    }
    // Before the body, which may be large.
    let Some(user) = passwords.user(&headers, &pairs) else {
        let why = "Authentication failed: the password is missing, or not that of the user. (AUTHENTICATION_FAILED)";
        return refused(516, why);
    };
    // GET changes nothing, also with the password of the writer.
    let user = if post { user } else { User::Reader };
    let body = match read_body(request.into_body()).await {
        Ok(body) => body,
        Err(response) => return response,
    };
    let body = match read_form(&headers, body, &mut pairs).await {
        Ok(body) => body,
        Err(error) => {
            let text = format!("Code: 36. DB::Exception: the form could not be read: {error}");
            return failure(StatusCode::BAD_REQUEST, 36, &text);
        }
    };
    match ask(user, pairs, &headers, &body) {
        Err(Invalid::Malformed(why)) => failure(
            StatusCode::BAD_REQUEST,
            62,
            &format!("Code: 62. DB::Exception: {why}. (SYNTAX_ERROR)"),
        ),
        Err(Invalid::Unsupported(why)) => failure(
            StatusCode::NOT_IMPLEMENTED,
            48,
            &format!("Code: 48. DB::Exception: {why}. (NOT_IMPLEMENTED)"),
        ),
        Ok(ask)
            if user == User::Reader
                && let Some(why) = ask.statement.refusal() =>
        {
            refused(164, &format!("GET and the user reader only read: {why}. (READONLY)"))
        }
        Ok(ask) => match engine.run(ask).await {
            Ok(answer) => {
                let summary = format!(
                    r#"{{"read_rows":"{}","written_rows":"{}"}}"#,
                    answer.rows_read, answer.rows_written
                );
                ([("X-ClickHouse-Summary", summary)], answer.body).into_response()
            }
            Err(error) => {
                let code = code(&error);
                failure(status(code), code, &error)
            }
        },
    }
}

fn refused(code: u32, why: &str) -> Response {
    failure(StatusCode::FORBIDDEN, code, &format!("Code: {code}. DB::Exception: {why}"))
}

async fn read_body(body: Body) -> Result<Bytes, Response> {
    to_bytes(body, BODY_BYTES_MAX).await.map_err(|error| {
        let text = format!("Code: 307. DB::Exception: the body could not be read: {error}");
        failure(StatusCode::PAYLOAD_TOO_LARGE, 307, &text)
    })
}

/// Takes a form apart, which is how the clickhouse crate sends parameters: its fields join those
/// of the URL. A body that is no form stays what it is.
async fn read_form(
    headers: &HeaderMap,
    body: Bytes,
    pairs: &mut Vec<(String, String)>,
) -> Result<Bytes, multer::Error> {
    let content_type =
        headers.get(CONTENT_TYPE).and_then(|it| it.to_str().ok()).unwrap_or_default();
    let Ok(boundary) = multer::parse_boundary(content_type) else { return Ok(body) };
    let whole = futures_util::stream::iter([Ok::<_, std::convert::Infallible>(body)]);
    let mut form = multer::Multipart::new(whole, boundary);
    while let Some(field) = form.next_field().await? {
        let name = field.name().unwrap_or_default().to_owned();
        pairs.push((name, field.text().await?));
    }
    Ok(Bytes::new())
}

/// Assembles a request; the reason if it is not understood.
fn ask(
    user: User,
    pairs: Vec<(String, String)>,
    headers: &HeaderMap,
    body: &[u8],
) -> Result<Ask, Invalid> {
    let encoding = headers.get(CONTENT_ENCODING).map_or(&b"identity"[..], |it| it.as_bytes());
    if !encoding.eq_ignore_ascii_case(b"identity") {
        return Err(Invalid::Unsupported(COMPRESSED));
    }
    let mut query = String::new();
    let mut format = "TabSeparated".to_owned();
    let mut database =
        headers.get("X-ClickHouse-Database").and_then(|d| d.to_str().ok()).map(str::to_owned);
    let mut parameters = Vec::new();
    let mut settings = Vec::new();
    for (name, value) in pairs {
        match name.as_str() {
            "query" => query = value,
            "database" => database = Some(value),
            "default_format" => format = value,
            "compress" | "decompress" if value != "0" => {
                return Err(Invalid::Unsupported(COMPRESSED));
            }
            "session_check" if value != "0" => {
                return Err(Invalid::Unsupported("no session_check: there are no sessions"));
            }
            "compress" | "decompress" | "session_check" => {}
            known if IGNORED.contains(&known) => {}
            _ => match name.strip_prefix("param_") {
                Some(parameter) => parameters.push((parameter.to_owned(), value)),
                None if is_setting(&name) => settings.push((name, value)),
                None => {
                    return Err(Invalid::Malformed(
                        "a setting's name has letters, digits and underscores only",
                    ));
                }
            },
        }
    }
    if let Some(named) = headers.get("X-ClickHouse-Format").and_then(|format| format.to_str().ok())
    {
        format = named.to_owned();
    }
    let statement = statement::read(&query, body)?;
    let database = database.filter(|database| database != "default");
    Ok(Ask { user, statement, format, database, parameters, settings })
}

fn is_setting(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

fn failure(status: StatusCode, code: u32, text: &str) -> Response {
    let headers = [("X-ClickHouse-Exception-Code", code.to_string())];
    (status, headers, format!("{}\n", text.trim_end())).into_response()
}

/// The code in ClickHouse's own text: `Code: 60. DB::Exception: …`.
fn code(error: &str) -> u32 {
    let digits = error.split("Code: ").nth(1).unwrap_or_default();
    digits.split(|c: char| !c.is_ascii_digit()).next().and_then(|n| n.parse().ok()).unwrap_or(0)
}

/// The status that ClickHouse gives an error of this code (exceptionCodeToHTTPStatus in its
/// HTTPHandler): 400 for what the client wrote wrong, 404 for what is not there, 500 else.
fn status(code: u32) -> StatusCode {
    match code {
        6 | 26 | 27 | 36 | 38 | 41 | 46 | 47 | 50 | 53 | 62 | 69 | 70 | 72 | 73 | 115 | 117
        | 130 | 457 => StatusCode::BAD_REQUEST,
        60 | 81 => StatusCode::NOT_FOUND,
        164 | 497 => StatusCode::FORBIDDEN,
        48 => StatusCode::NOT_IMPLEMENTED,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}
