//! Page and API of the recycle bin, and restoring from it.

use actix_web::web::Data;
use actix_web::{HttpRequest, HttpResponse};
use serde_json::json;
use uuid::Uuid;

use super::form_or_json::FormOrJson;
use super::openapi::{Bin, FieldResponse, RecycledMessageResponse, RefusedResponse, Restored};
use super::{DO_WITHIN, LATE, LOOK_WITHIN, may, sources};
use crate::actors::io::POSTGRES_LATE;
use crate::contract::Name;
use crate::fleet::message::{Action, BinState, Binned, Field};
use crate::operator::recycle;
use crate::pages::operator::BinPage;
use crate::postgres::recycle_bin::{self, Filter};
use crate::web::AppState;
use crate::web::access::{Caller, audited};
use crate::web::html::html;
use crate::web::problem::Problem;

/// Rows per page, and default for the API.
pub(super) const SHOWN: u64 = 50;
/// Maximum number of rows per response.
pub(super) const MOST_SHOWN: u64 = 500;
/// Larger payloads are not shown, bytes.
const PAYLOAD_BYTES: i32 = 64 << 10;
/// Maximum number of IDs per request.
pub(super) const MOST_IDS: usize = 1000;

struct Seen {
    filter: Filter,
    rows: Vec<Binned>,
    next: Option<i64>,
}

/// `GET /admin/recycle-bin?stream=&batch=&before=`.
pub async fn page(front: Data<AppState>, request: HttpRequest, caller: Caller) -> Result<HttpResponse, Problem> {
    let Seen { filter, rows, next } = look(&front, &FormOrJson::in_address(&request)?).await?;
    shown((&front, &caller), &filter, &rows, next, None)
}

fn shown(
    (front, caller): (&AppState, &Caller),
    filter: &Filter,
    rows: &[Binned],
    next: Option<i64>,
    said: Option<String>,
) -> Result<HttpResponse, Problem> {
    let batch = filter.batch.map(|batch| batch.to_string());
    let page = BinPage { rows, stream: filter.stream.as_ref(), batch: batch.as_deref(), next, said };
    html(page.html(&front.site_for(caller)))
}

/// `GET /api/admin/recycle_bin?stream=&batch=&state=&before=&limit=50`: deleted messages, newest first.
pub async fn list(front: Data<AppState>, request: HttpRequest) -> Result<HttpResponse, Problem> {
    let Seen { rows, next, .. } = look(&front, &FormOrJson::in_address(&request)?).await?;
    Ok(HttpResponse::Ok().json(Bin { entries: rows.into_iter().map(told).collect(), next }))
}

async fn look(front: &AppState, given: &FormOrJson) -> Result<Seen, Problem> {
    let limit = given.number("limit", SHOWN, MOST_SHOWN)?.max(1);
    let before = given.number("before", 0, i64::MAX.unsigned_abs())?;
    let state = match given.one("state") {
        None => None,
        Some(word) => {
            Some(BinState::from_word(word)).filter(|state| state.as_str() == word).map(Some).ok_or_else(|| {
                Problem::BadRequest(format!("state is {word:?}: expected pending, binned, void or restored"))
            })?
        }
    };
    let filter = Filter {
        stream: given.one("stream").map(Name::from),
        batch: batch(given)?,
        state,
        before: i64::try_from(before).ok().filter(|before| *before > 0),
        payload_bytes: PAYLOAD_BYTES,
        ..Filter::default()
    };
    let (sources, reads, asked) = (sources(front), front.io.web.reads.clone(), filter.clone());
    let reading = front.io.read(LOOK_WITHIN, POSTGRES_LATE, async move {
        // Finishes operations that a crash interrupted. Without Redis, they stay unfinished.
        if let Err(trouble) = recycle::settle_overdue(&sources).await {
            tracing::debug!(error = trouble.detail, "cannot settle pending recycle bin entries; retrying later");
        }
        recycle_bin::rows(&reads, &asked, i64::try_from(limit).unwrap_or(50)).await
    });
    let mut rows: Vec<Binned> = reading.await?;
    let full = u64::try_from(rows.len()).is_ok_and(|n| n == limit);
    let next = rows.last().filter(|_| full).map(|row| row.id);
    rows.retain(|row| front.watched.contains(&row.stream));
    Ok(Seen { filter, rows, next })
}

fn batch(given: &FormOrJson) -> Result<Option<Uuid>, Problem> {
    let Some(text) = given.one("batch") else { return Ok(None) };
    let batch = text.parse().map_err(|_| Problem::BadRequest(format!("batch is {text:?}: expected a batch ID")))?;
    Ok(Some(batch))
}

fn told(row: Binned) -> RecycledMessageResponse {
    let field = |(name, value): (Vec<u8>, Vec<u8>)| {
        let bytes = value.len() as u64;
        FieldResponse::from(&Field { name, value, bytes })
    };
    let whole = !row.fields.is_empty() || row.bytes == 0;
    RecycledMessageResponse {
        id: row.id,
        batch: row.batch,
        stream: row.stream,
        group: row.group,
        was: row.was,
        entry: row.entry,
        owner: row.owner,
        deliveries: row.deliveries,
        bytes: row.bytes,
        fields: whole.then(|| row.fields.into_iter().map(field).collect()),
        state: row.state,
        who: row.who,
        why: row.why,
        at: row.at,
        restored_as: row.restored_as,
        restored_by: row.restored_by,
        restored_at: row.restored_at,
    }
}

/// Rejects restoring into streams that this monitor does not watch.
async fn within_scope(front: &AppState, filter: &Filter) -> Result<(), Problem> {
    const AT_ONCE: i64 = 1000;
    let mut filter = Filter { after: Some(0), payload_bytes: 0, ..filter.clone() };
    loop {
        let (pool, asked) = (front.io.web.changes.clone(), filter.clone());
        let reading =
            front.io.read(LOOK_WITHIN, POSTGRES_LATE, async move { recycle_bin::rows(&pool, &asked, AT_ONCE).await });
        let rows = reading.await?;
        rows.iter().try_for_each(|row| front.within_scope(&row.stream))?;
        let Some(last) = rows.last() else { return Ok(()) };
        filter.after = Some(last.id);
    }
}

/// `POST /api/admin/recycle_bin/restore` with `id` (one or several) or `batch`: restores messages to their streams.
/// Idempotent: each message is restored once.
pub async fn restore(front: Data<AppState>, caller: Caller, given: FormOrJson) -> Result<HttpResponse, Problem> {
    may(&caller, Action::Drop)?;
    let mut ids = Vec::new();
    for text in given.all("id").chain(given.all("ids")) {
        ids.push(text.parse::<i64>().map_err(|_| Problem::BadRequest(format!("id is {text:?}: expected a number")))?);
    }
    let batch = batch(&given)?;
    if ids.len() > MOST_IDS || (ids.is_empty() == batch.is_none()) {
        return Err(Problem::BadRequest(format!("expected either batch, or up to {MOST_IDS} ids")));
    }
    let filter = Filter { batch, ids: (!ids.is_empty()).then_some(ids), ..Filter::default() };
    within_scope(&front, &filter).await?;
    let (sources, who, asked, io) = (sources(&front), caller.name.clone(), filter.clone(), front.io.clone());
    let work = async move {
        let doing = io.run(DO_WITHIN, LATE, async move { recycle::restore(&sources, &asked, &who).await });
        let restored = doing.await?;
        let answer = Restored {
            restored: restored.restored,
            never_left: restored.void,
            refused: restored.refused.clone().map(RefusedResponse::from),
        };
        Ok((json!(answer), restored))
    };
    let parameters = json!({"batch": batch.map(|batch| batch.to_string()), "ids": filter.ids});
    let (answer, restored) = audited(&front, &caller, "restore messages", parameters, work).await?;
    if !given.form {
        return Ok(HttpResponse::Ok().json(answer));
    }
    let messages = if restored.restored == 1 { "message" } else { "messages" };
    let mut said = format!("{} {messages} restored", restored.restored);
    if restored.void > 0 {
        said.push_str(&format!(", {} had not been removed from their stream", restored.void));
    }
    if let Some((n, error)) = &restored.refused {
        said.push_str(&format!(", {n} rejected by Redis: {error}"));
    }
    let filter = Filter { payload_bytes: PAYLOAD_BYTES, ..filter };
    let (pool, asked) = (front.io.web.reads.clone(), filter.clone());
    let limit = i64::try_from(SHOWN).unwrap_or(50);
    let reading =
        front.io.run(LOOK_WITHIN, POSTGRES_LATE, async move { recycle_bin::rows(&pool, &asked, limit).await });
    shown((&front, &caller), &filter, &reading.await?, None, Some(said))
}
