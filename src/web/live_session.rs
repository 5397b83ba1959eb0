//! Websocket sessions: one small actor per connection that forwards messages of the live feed.
//!
//! The only module that depends on actix-web-actors.

use std::time::{Duration, Instant};

use actix::{Actor, ActorContext, ActorFutureExt, AsyncContext, Handler, StreamHandler, WrapFuture};
use actix_web::web::{Data, Payload, Query};
use actix_web::{Error, HttpMessage as _, HttpRequest, HttpResponse};
use actix_web_actors::ws;

use super::AppState;
use super::access::{Caller, OpenSession, TokenOwner};
use super::live_page::Known;
use super::read_limits::OpenWebsocket;
use crate::access::Policy;
use crate::actors::io::Io;
use crate::actors::messages::{Feed, Join, Push};

/// Interval of pings. A client that stopped reading is usually detected earlier, by the feed.
const PING_EVERY: Duration = Duration::from_secs(30);
/// A client that sent nothing for this long, not even a pong, is disconnected.
const GONE_AFTER: Duration = Duration::from_secs(75);
/// Maximum frame size, bytes. Clients send only control frames.
const MAX_FRAME: usize = 1024;
/// A connection that was not opened by a login session closes after this time, so that the client reconnects with the
/// credentials it has then: only its first request was authenticated.
const AUTHENTICATED_FOR: Duration = Duration::from_secs(600);
/// A session without messages from the feed for this many intervals closes, so that the client reconnects.
const FORGOTTEN_AFTER_INTERVALS: u32 = 5;

/// `GET /ws`: full snapshots, the newest at once and then one per tick.
pub async fn snapshots(front: Data<AppState>, request: HttpRequest, payload: Payload) -> Result<HttpResponse, Error> {
    start(&front, Feed::Snapshots, &request, payload)
}

/// `GET /live/ws?epoch=&tick=`: changes of the live page after that tick, then further changes as they occur.
pub async fn changes(
    front: Data<AppState>,
    known: Query<Known>,
    request: HttpRequest,
    payload: Payload,
) -> Result<HttpResponse, Error> {
    start(&front, Feed::Changes { epoch: known.epoch, tick: known.tick }, &request, payload)
}

fn start(front: &AppState, feed: Feed, request: &HttpRequest, payload: Payload) -> Result<HttpResponse, Error> {
    let now = Instant::now();
    let caller = request.extensions().get::<Caller>().cloned();
    let counted = caller.map(|caller| front.read_limits.open_websocket(&caller, front.websockets_per_client));
    let counted = counted.transpose()?;
    let session = LiveSession {
        feed,
        join: front.join.clone(),
        forgotten_after: front.interval * FORGOTTEN_AFTER_INTERVALS + Duration::from_secs(10),
        heard: now,
        fed: now,
        login: request.extensions().get::<OpenSession>().map(|session| session.for_websocket(&front.io)),
        owner: request.extensions().get::<TokenOwner>().cloned(),
        must_authenticate: !matches!(*front.lock.policy, Policy::Nobody { .. }),
        io: front.io.clone(),
        _counted: counted,
    };
    ws::WsResponseBuilder::new(session, request, payload).frame_size(MAX_FRAME).start()
}

/// State of a connection.
struct LiveSession {
    feed: Feed,
    join: actix::Recipient<Join>,
    forgotten_after: Duration,
    /// Time of the last frame from the client.
    heard: Instant,
    /// Time of the last message from the feed.
    fed: Instant,
    /// Login session of the browser; the connection closes when it ends.
    login: Option<OpenSession>,
    /// Named user whose token the client presented; the connection closes when it ends.
    owner: Option<TokenOwner>,
    must_authenticate: bool,
    io: Io,
    _counted: Option<OpenWebsocket>,
}

impl Drop for LiveSession {
    fn drop(&mut self) {
        self.login.iter().for_each(OpenSession::websocket_closed);
    }
}

type Ctx = ws::WebsocketContext<LiveSession>;

impl LiveSession {
    fn close(ctx: &mut Ctx, code: ws::CloseCode) {
        ctx.close(Some(ws::CloseReason { code, description: None }));
        ctx.stop();
    }
}

impl Actor for LiveSession {
    type Context = Ctx;

    fn started(&mut self, ctx: &mut Ctx) {
        self.join.do_send(Join { feed: self.feed, session: ctx.address().recipient() });
        if let Some(login) = &self.login {
            ctx.spawn(login.ended().into_actor(self).map(|(), _, ctx| Self::close(ctx, ws::CloseCode::Policy)));
        } else if self.must_authenticate {
            ctx.run_later(AUTHENTICATED_FOR, |_, ctx| Self::close(ctx, ws::CloseCode::Restart));
        }
        if let Some(owner) = self.owner.take() {
            let ended = owner.ended(self.io.clone());
            ctx.spawn(ended.into_actor(self).map(|(), _, ctx| Self::close(ctx, ws::CloseCode::Policy)));
        }
        ctx.run_interval(PING_EVERY, |this, ctx| {
            if this.heard.elapsed() > GONE_AFTER || this.fed.elapsed() > this.forgotten_after {
                return Self::close(ctx, ws::CloseCode::Away);
            }
            if this.login.as_ref().is_some_and(|login| !login.is_used(&this.io)) {
                return Self::close(ctx, ws::CloseCode::Policy);
            }
            ctx.ping(b"");
        });
    }
}

impl Handler<Push> for LiveSession {
    type Result = ();

    fn handle(&mut self, push: Push, ctx: &mut Ctx) {
        self.fed = Instant::now();
        match push {
            Push::Text(text) => ctx.text(text),
            Push::Close => Self::close(ctx, ws::CloseCode::Restart),
        }
    }
}

impl StreamHandler<Result<ws::Message, ws::ProtocolError>> for LiveSession {
    fn handle(&mut self, message: Result<ws::Message, ws::ProtocolError>, ctx: &mut Ctx) {
        self.heard = Instant::now();
        match message {
            Ok(ws::Message::Ping(bytes)) => ctx.pong(&bytes),
            Ok(ws::Message::Close(_)) | Err(_) => Self::close(ctx, ws::CloseCode::Normal),
            Ok(_) => {}
        }
    }
}
