//! Encodes bodies as JSON in one zstd frame with its content size.
//!
//! Python's one-shot `decompress` needs the content size. Large bodies are processed on the blocking threads of the
//! runtime.

use std::io::Read;

use serde::Serialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use zstd::zstd_safe::get_frame_content_size;

use super::ShepherdError;

/// zstd's default, which the Python workers also use.
const LEVEL: i32 = 3;
/// Bodies above this size in bytes are processed on a blocking thread.
const INLINE: usize = 64 << 10;
/// Maximum number of bytes to preallocate for the size in a frame header, which may be wrong.
const RESERVED: u64 = 64 << 20;

/// Encodes `body` for storage.
pub(super) async fn encode(
    id: &str,
    body: &(impl Serialize + Sync + ?Sized),
    largest: u64,
) -> Result<Vec<u8>, ShepherdError> {
    let mut json = Bounded { bytes: Vec::new(), left: largest };
    match serde_json::to_writer(&mut json, body) {
        Ok(()) => compress(id, json.bytes, largest).await,
        Err(e) if e.is_io() => Err(too_large(id, largest)),
        Err(e) => Err(malformed("store", id, format!("cannot serialize as JSON: {e}"))),
    }
}

/// Compresses JSON text for storage.
pub(super) async fn encode_json(id: &str, json: Vec<u8>, largest: u64) -> Result<Vec<u8>, ShepherdError> {
    if json.len() as u64 > largest {
        return Err(too_large(id, largest));
    }
    let (json, is_json) = offload(json.len(), move || {
        let is_json = serde_json::from_slice::<IgnoredAny>(&json).map(drop);
        (json, is_json)
    })
    .await?;
    is_json.map_err(|e| malformed("store", id, format!("invalid JSON: {e}")))?;
    compress(id, json, largest).await
}

async fn compress(id: &str, json: Vec<u8>, largest: u64) -> Result<Vec<u8>, ShepherdError> {
    let compressed = offload(json.len(), move || zstd::bulk::compress(&json, LEVEL)).await?;
    let blob = compressed.map_err(|e| malformed("store", id, format!("cannot compress: {e}")))?;
    if blob.len() as u64 > super::LARGEST {
        return Err(too_large(id, largest));
    }
    Ok(blob)
}

/// Decodes a stored body.
pub(super) async fn decode<T: DeserializeOwned + Send + 'static>(
    id: &str,
    blob: Vec<u8>,
    largest: u64,
) -> Result<T, ShepherdError> {
    let (name, size) = (id.to_owned(), declared(&blob));
    let work = move || {
        let json = decompress(&name, &blob, largest)?;
        serde_json::from_slice(&json).map_err(|e| malformed("read", &name, unreadable(&e)))
    };
    offload(size, work).await?
}

/// Decompresses a stored body to JSON text.
pub(super) async fn decode_json(id: &str, blob: Vec<u8>, largest: u64) -> Result<Vec<u8>, ShepherdError> {
    let (name, size) = (id.to_owned(), declared(&blob));
    offload(size, move || decompress(&name, &blob, largest)).await?
}

/// Content size in the header of the frame; 0 if missing.
fn declared(blob: &[u8]) -> usize {
    let size = get_frame_content_size(blob).ok().flatten();
    size.and_then(|size| usize::try_from(size).ok()).unwrap_or(usize::MAX)
}

fn decompress(id: &str, blob: &[u8], largest: u64) -> Result<Vec<u8>, ShepherdError> {
    let no_frame = |e: &dyn std::fmt::Display| malformed("read", id, format!("invalid zstd frame: {e}"));
    let size = get_frame_content_size(blob).map_err(|e| no_frame(&e))?;
    if size.is_some_and(|size| size > largest) {
        return Err(too_large(id, largest));
    }
    // Streaming, because frames of other writers may lack the content size.
    let mut json = Vec::with_capacity(usize::try_from(size.unwrap_or(0).min(RESERVED)).unwrap_or(0));
    let frame = zstd::stream::read::Decoder::with_buffer(blob).map_err(|e| no_frame(&e))?.single_frame();
    let read = frame.take(largest.saturating_add(1)).read_to_end(&mut json);
    match read {
        Ok(bytes) if bytes as u64 > largest => Err(too_large(id, largest)),
        Ok(_) => Ok(json),
        Err(e) => Err(no_frame(&e)),
    }
}

fn unreadable(error: &serde_json::Error) -> String {
    match error.is_data() {
        true => format!("unexpected JSON structure: {error}"),
        false => format!("invalid JSON: {error}"),
    }
}

fn too_large(id: &str, limit: u64) -> ShepherdError {
    ShepherdError::TooLarge { id: id.to_owned(), limit }
}

fn malformed(verb: &str, id: &str, reason: String) -> ShepherdError {
    ShepherdError::Malformed { doing: format!("{verb} the body {id}"), reason }
}

/// Runs `work` on a blocking thread if it processes many bytes.
async fn offload<T: Send + 'static>(
    bytes: usize,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ShepherdError> {
    if bytes <= INLINE {
        return Ok(work());
    }
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => Ok(done),
        Err(e) => match e.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => Err(ShepherdError::ShuttingDown),
        },
    }
}

/// Buffer that returns an error instead of exceeding its limit.
struct Bounded {
    bytes: Vec<u8>,
    left: u64,
}

impl std::io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let left = self.left.checked_sub(bytes.len() as u64);
        self.left = left.ok_or_else(|| std::io::Error::from(std::io::ErrorKind::FileTooLarge))?;
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use serde_json::{Value, json};

    use super::*;

    #[tokio::test]
    async fn stored_bodies_have_a_content_size_and_round_trip() {
        let body = json!({"message": {"results": vec!["r"; 40_000]}});
        let blob = encode("b", &body, 1 << 20).await.unwrap();
        let length = serde_json::to_vec(&body).unwrap().len() as u64;
        assert_eq!(get_frame_content_size(&blob).unwrap(), Some(length));
        assert_eq!(decode::<Value>("b", blob, length).await.unwrap(), body);
    }

    #[tokio::test]
    async fn bodies_above_the_limit_are_rejected_despite_a_wrong_content_size() {
        let large = "x".repeat(1000);
        let too_large = |error: ShepherdError| assert_eq!(error, super::too_large("b", 1000));
        too_large(encode("b", &large, 1000).await.unwrap_err());
        too_large(encode_json("b", format!("{large:?}").into_bytes(), 1000).await.unwrap_err());
        let json = format!("{large:?}").into_bytes();
        assert_eq!(json.len(), 1002);
        too_large(decode_json("b", zstd::bulk::compress(&json, 3).unwrap(), 1000).await.unwrap_err());
        // A streaming writer does not know the content size and omits it.
        let mut streaming = zstd::stream::write::Encoder::new(Vec::new(), 3).unwrap();
        for part in [&json[..500], &json[500..]] {
            streaming.write_all(part).unwrap();
            streaming.flush().unwrap();
        }
        let streamed = streaming.finish().unwrap();
        assert_eq!(get_frame_content_size(&streamed).unwrap(), None);
        too_large(decode_json("b", streamed.clone(), 1000).await.unwrap_err());
        assert_eq!(decode_json("b", streamed, 1002).await.unwrap(), json);
    }

    #[tokio::test]
    async fn invalid_bodies_return_a_descriptive_error() {
        let frame = |text: &str| zstd::bulk::compress(text.as_bytes(), 3).unwrap();
        let mut cut = frame(&"{\"a\": 1}".repeat(100));
        cut.truncate(cut.len() / 2);
        for (blob, reason) in [
            (b"{}".to_vec(), "invalid zstd frame"),
            (Vec::new(), "invalid zstd frame"),
            (cut, "invalid zstd frame"),
            (frame("{"), "invalid JSON"),
            (frame("[]"), "unexpected JSON structure"),
        ] {
            let error = decode::<std::collections::BTreeMap<String, Value>>("b", blob, 1000).await.unwrap_err();
            assert!(error.to_string().starts_with(&format!("cannot read the body b: {reason}")), "{error}");
        }
        assert!(encode_json("b", b"{".to_vec(), 9).await.unwrap_err().to_string().contains("invalid JSON"));
    }
}
