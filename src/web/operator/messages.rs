//! Page and API for the messages of a stream.

use actix_web::web::Data;
use actix_web::{HttpRequest, HttpResponse};

use super::form_or_json::FormOrJson;
use super::openapi::{GroupResponse, MessageResponse, Messages, OwnerResponse, PreviewResponse};
use super::{LOOK_WITHIN, keep};
use crate::actors::io::REDIS_LATE;
use crate::contract::{Name, task};
use crate::fleet::message::{Action, Found, Group, MessageState, Page, Wanted};
use crate::operator::preview;
use crate::pages::link::{messages_of, stream_of_messages};
use crate::pages::operator::{MessagesPage, PreviewPage};
use crate::redis_streams::messages::{self, Bounds, Start};
use crate::redis_streams::tasks::EntryId;
use crate::web::AppState;
use crate::web::access::Caller;
use crate::web::html::html;
use crate::web::problem::Problem;
use crate::web::text_limits::{NAME, at_most};

/// Messages per page, and default for the API.
pub(super) const SHOWN: u64 = 20;
/// Maximum number of messages per response.
pub(super) const MOST_SHOWN: u64 = 200;
/// Maximum number of entries scanned per page.
const LOOKED: u64 = 5000;
/// Bytes shown of a value in a list of messages.
const VALUE_BYTES: usize = 4096;
/// Bytes shown of a value of a single message.
const WHOLE_BYTES: usize = 256 << 10;
/// Maximum number of IDs per request.
pub(super) const MOST_IDS: usize = 1000;

struct Seen {
    stream: Name,
    groups: Vec<Group>,
    dead: Option<u64>,
    wanted: Wanted,
    page: Page,
    one: bool,
}

/// `GET /streams/{name}/messages?state=&group=&owner=&field=&contains=&cursor=&id=`.
pub async fn page(front: Data<AppState>, request: HttpRequest, caller: Caller) -> Result<HttpResponse, Problem> {
    let seen = look(&front, &request, SHOWN).await?;
    let page = MessagesPage {
        stream: &seen.stream,
        groups: &seen.groups,
        dead: seen.dead,
        wanted: &seen.wanted,
        page: &seen.page,
        one: seen.one,
    };
    html(page.html(&front.site_for(&caller)))
}

/// `GET /api/streams/{name}/messages?state=pending|unread|dead&group=&owner=&field=&contains=&cursor=&limit=`:
/// messages in stream order, oldest first. With `id=`, a single message with longer values.
pub async fn list(front: Data<AppState>, request: HttpRequest) -> Result<HttpResponse, Problem> {
    let Seen { stream, groups, dead, wanted, page, .. } = look(&front, &request, MOST_SHOWN).await?;
    let group = |group: Group| GroupResponse { name: group.name, pending: group.pending, unread: group.unread };
    Ok(HttpResponse::Ok().json(Messages {
        stream,
        state: wanted.state,
        group: (wanted.state != MessageState::Dead).then_some(wanted.group),
        groups: groups.into_iter().map(group).collect(),
        dead,
        messages: page.messages.iter().map(MessageResponse::from).collect(),
        looked_at: page.looked,
        next: page.next,
    }))
}

/// Stream in the path, if it is within this monitor's scope.
fn stream_in(front: &AppState, request: &HttpRequest) -> Result<Name, Problem> {
    let stream = stream_of_messages(request.uri().path(), request.query_string());
    at_most("stream", &stream.to_text(), NAME)?;
    front.within_scope(&stream)?;
    Ok(stream)
}

async fn look(front: &AppState, request: &HttpRequest, most: u64) -> Result<Seen, Problem> {
    let given = FormOrJson::in_address(request)?;
    let stream = stream_in(front, request)?;
    let (groups, dead) = groups(front, &stream).await?;
    let wanted = wanted(&given, &groups)?;
    let limit = given.number("limit", SHOWN, most)?.max(1);
    let id = |name: &str| match given.one(name) {
        None => Ok(None),
        Some(text) => match text.parse::<EntryId>() {
            Ok(id) => Ok(Some(id.as_str().to_owned())),
            Err(why) => Err(Problem::BadRequest(format!("{name} is {text:?}: {why}"))),
        },
    };
    let (one, cursor) = (id("id")?, id("cursor")?);
    let mut bounds =
        Bounds { matches: usize::try_from(limit).unwrap_or(usize::MAX), looked: LOOKED, shown: VALUE_BYTES };
    let (redis, asked, at) = (front.io.web.redis.clone(), wanted.clone(), stream.clone());
    let single = one.is_some();
    let looking = front.io.read(LOOK_WITHIN, REDIS_LATE, async move {
        let start = match (&one, &cursor) {
            (Some(id), _) => {
                bounds = Bounds { matches: 1, looked: 1, shown: WHOLE_BYTES };
                Start::At(id)
            }
            (None, Some(id)) => Start::After(id),
            (None, None) => Start::Beginning,
        };
        let mut page = messages::page(&redis, &at, &asked, start, bounds).await?;
        if let Some(id) = &one {
            page.messages.retain(|message| message.id == *id);
            page.next = None;
        }
        Ok(page)
    });
    Ok(Seen { page: looking.await?, stream, groups, dead, wanted, one: single })
}

async fn groups(front: &AppState, stream: &Name) -> Result<(Vec<Group>, Option<u64>), Problem> {
    let (redis, stream) = (front.io.web.redis.clone(), stream.clone());
    let looking = front.io.read(LOOK_WITHIN, REDIS_LATE, async move { messages::groups(&redis, &stream).await });
    Ok(looking.await?)
}

/// Parses the filter. The default group is the fleet's, or else the first.
fn wanted(given: &FormOrJson, groups: &[Group]) -> Result<Wanted, Problem> {
    let state = match given.one("state") {
        None => MessageState::Pending,
        Some(text) => text.parse().map_err(|why| Problem::BadRequest(format!("state is {text:?}: {why}")))?,
    };
    let named = |text: &str| groups.iter().find(|group| group.name.to_text() == text).map(|group| group.name.clone());
    let group = match given.one("group") {
        Some(text) => named(text)
            .or_else(|| groups.is_empty().then(|| Name::from(text)))
            .or_else(|| (state == MessageState::Dead).then(|| Name::from(text)))
            .ok_or_else(|| {
                Problem::BadRequest(format!(
                    "group is {text:?}: expected a consumer group of this \
             stream"
                ))
            })?,
        None => named(task::GROUP)
            .or_else(|| groups.first().map(|group| group.name.clone()))
            .unwrap_or_else(|| Name::from(task::GROUP)),
    };
    Ok(Wanted {
        state,
        group,
        owner: given.one("owner").map(Name::from).filter(|_| state == MessageState::Pending),
        min_idle_ms: 0,
        field: given.one("field").map(|text| text.as_bytes().to_vec()),
        contains: given.one("contains").unwrap_or_default().as_bytes().to_vec(),
    })
}

/// `POST /api/streams/{name}/messages/preview` with `action` (`retry`, `bury`, `drop`), `state`, `group`, `owner`,
/// `field`, `contains`, or `id` (one or several): returns the effect of the action and the token to apply it.
pub async fn preview(
    request: HttpRequest,
    front: Data<AppState>,
    caller: Caller,
    given: FormOrJson,
) -> Result<HttpResponse, Problem> {
    let stream = stream_in(&front, &request)?;
    let (groups, _) = groups(&front, &stream).await?;
    let wanted = wanted(&given, &groups)?;
    let action = action(&given)?;
    if !action.fits(wanted.state) {
        return Err(Problem::BadRequest(format!("action {action} is not possible for {} messages", wanted.state)));
    }
    let mut ids = Vec::new();
    for text in given.all("id").chain(given.all("ids")) {
        let id: EntryId = text.parse().map_err(|why| Problem::BadRequest(format!("id is {text:?}: {why}")))?;
        ids.push(id.as_str().to_owned());
    }
    if ids.len() > MOST_IDS {
        return Err(Problem::BadRequest(format!("{} ids: expected {MOST_IDS} at most", ids.len())));
    }
    ids.dedup();
    let (redis, at, asked) = (front.io.web.redis.clone(), stream.clone(), wanted.clone());
    let why = given.one("why").unwrap_or_default().to_owned();
    let looking = front.io.read(LOOK_WITHIN, REDIS_LATE, async move {
        preview::messages(&redis, &at, &asked, &ids, (action, &why)).await
    });
    let found: Found = looking.await?;
    let token = keep(&front, &caller, &found.chosen).await?;
    let base = messages_of(&stream);
    if given.form {
        let apply = match base.split_once('?') {
            Some((path, query)) => format!("/api{path}/apply?{query}"),
            None => format!("/api{base}/apply"),
        };
        return html(PreviewPage::of(&found, (&token, &apply, &base)).html(&front.site_for(&caller)));
    }
    let owner = |(consumer, heartbeat, messages)| OwnerResponse { consumer, heartbeat, messages };
    Ok(HttpResponse::Ok().json(PreviewResponse {
        token,
        expires_in_seconds: crate::postgres::recycle_bin::PREVIEW_MINUTES * 60,
        action,
        stream,
        state: wanted.state,
        group: wanted.group,
        messages: found.chosen.len(),
        complete: found.complete,
        looked_at: found.looked,
        groups: found.groups,
        owners: found.owners.into_iter().map(owner).collect(),
        first: found.first.iter().map(MessageResponse::from).collect(),
    }))
}

/// Parses the action.
pub(super) fn action(given: &FormOrJson) -> Result<Action, Problem> {
    let text = given.needed("action", "retry, bury or drop")?;
    text.parse().map_err(|why| Problem::BadRequest(format!("action is {text:?}: {why}")))
}
