//! The hash chain of the audit log: what a hash covers, and how the chain is verified. Without I/O.
//!
//! The request of a change and its outcome are separate facts, each with a link of its own. The hash of a link is the
//! SHA-256 of these fields in order, each preceded by its length in 8 bytes (big-endian; 2^64 − 1 for NULL): the text
//! `shepherd-monitor audit 1`, the hash of the previous link, and of the link its `seq`, `kind`, `ts` and `detail`; if
//! it has a row, also `id`, `ts`, `who`, `role`, `address`, `action` and `parameters` of the row, and for an outcome
//! `outcome`, `result` and `ended`. Numbers are decimal, times are microseconds since 1970, JSON is as Postgres prints it.

use std::fmt;

use ring::digest::{Context, SHA256};
use serde::{Deserialize, Serialize};

/// A SHA-256 hash.
pub type Hash = [u8; 32];

const VERSION: &str = "shepherd-monitor audit 1";

/// What a link records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fact {
    /// Start of the chain; older rows are not covered.
    Start,
    /// A change was requested.
    Begun,
    /// The outcome of a change.
    Ended,
    /// A row that was complete when it was stored.
    Recorded,
    /// Retention removed the links up to one.
    Retention,
}

impl Fact {
    const ALL: [Self; 5] = [Self::Start, Self::Begun, Self::Ended, Self::Recorded, Self::Retention];

    /// Name in the table.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Begun => "begun",
            Self::Ended => "ended",
            Self::Recorded => "recorded",
            Self::Retention => "retention",
        }
    }

    fn of(kind: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|fact| fact.as_str() == kind)
    }

    fn has_row(self) -> bool {
        matches!(self, Self::Begun | Self::Ended | Self::Recorded)
    }

    fn has_outcome(self) -> bool {
        matches!(self, Self::Ended | Self::Recorded)
    }
}

/// A link, as stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Position, from 0.
    pub seq: i64,
    /// Time of the fact, microseconds.
    pub ts: i64,
    /// Name of the [`Fact`].
    pub kind: String,
    /// Row of the audit log.
    pub row_id: Option<i64>,
    /// JSON of [`Start`] or [`Removed`].
    pub detail: String,
    /// Stored hash; empty for the start.
    pub hash: Vec<u8>,
}

/// The columns of a row that hashes cover.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChainedRow {
    /// Row ID.
    pub id: i64,
    /// Time of the request, microseconds.
    pub ts: i64,
    /// User.
    pub who: String,
    /// Role.
    pub role: String,
    /// Address.
    pub address: String,
    /// Action.
    pub action: String,
    /// Parameters, JSON.
    pub parameters: String,
    /// Outcome.
    pub outcome: String,
    /// Result, JSON.
    pub result: Option<String>,
    /// Time of the outcome, microseconds.
    pub ended: Option<i64>,
}

/// Detail of the start: the rows that existed before the chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Start {
    /// Highest row ID.
    pub last_id: i64,
    /// Number of rows.
    pub rows: i64,
}

/// Detail of a removal by retention.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Removed {
    /// The last removed link; 0 if none was removed yet.
    pub through: i64,
    /// Its hash, hexadecimal.
    pub hash: String,
    /// Hash of the start, hexadecimal.
    pub start: String,
}

/// A position in the chain with its hash, written `SEQ:HASH`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// Position.
    pub seq: i64,
    /// Hash.
    pub hash: Vec<u8>,
}

impl fmt::Display for Head {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.seq, hex(&self.hash))
    }
}

impl std::str::FromStr for Head {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        let expected = "expected SEQ:HASH, as printed by `audit export`";
        let (seq, hash) = text.trim().split_once(':').ok_or(expected)?;
        let hash = unhex(hash).filter(|hash| hash.len() == 32).ok_or(expected)?;
        Ok(Self { seq: seq.parse().map_err(|_| expected)?, hash })
    }
}

/// Returns bytes in hexadecimal.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes().chunks(2);
    digits.map(|two| u8::from_str_radix(str::from_utf8(two).ok().filter(|two| two.len() == 2)?, 16).ok()).collect()
}

/// Returns the hash of a link after the one with the hash `previous`.
#[must_use]
pub fn hash_of(previous: &[u8], link: &Link, row: Option<&ChainedRow>) -> Hash {
    let mut fields = Fields(Context::new(&SHA256));
    fields.add(Some(VERSION.as_bytes()));
    fields.add(Some(previous));
    fields.number(Some(link.seq));
    fields.text(&link.kind);
    fields.number(Some(link.ts));
    fields.text(&link.detail);
    if let Some(row) = row {
        fields.number(Some(row.id));
        fields.number(Some(row.ts));
        for text in [&row.who, &row.role, &row.address, &row.action, &row.parameters] {
            fields.text(text);
        }
        if Fact::of(&link.kind).is_some_and(Fact::has_outcome) {
            fields.text(&row.outcome);
            fields.add(row.result.as_deref().map(str::as_bytes));
            fields.number(row.ended);
        }
    }
    let mut hash = [0; 32];
    hash.iter_mut().zip(fields.0.finish().as_ref()).for_each(|(to, from)| *to = *from);
    hash
}

struct Fields(Context);

impl Fields {
    fn add(&mut self, field: Option<&[u8]>) {
        let length = field.map_or(u64::MAX, |field| u64::try_from(field.len()).unwrap_or(u64::MAX));
        self.0.update(&length.to_be_bytes());
        self.0.update(field.unwrap_or_default());
    }

    fn text(&mut self, text: &str) {
        self.add(Some(text.as_bytes()));
    }

    fn number(&mut self, number: Option<i64>) {
        self.add(number.map(|number| number.to_string()).as_deref().map(str::as_bytes));
    }
}

impl Link {
    /// Returns the hash that the next link covers.
    #[must_use]
    pub fn chained_hash(&self) -> Vec<u8> {
        // That of the start is not stored, because Postgres 10 cannot compute it.
        if self.kind == Fact::Start.as_str() { hash_of(&[], self, None).to_vec() } else { self.hash.clone() }
    }

    /// Returns the link as the end of the chain.
    #[must_use]
    pub fn as_head(&self) -> Head {
        Head { seq: self.seq, hash: self.chained_hash() }
    }

    /// Returns the rows that are older than the chain; `None` unless this is the start.
    #[must_use]
    pub fn start(&self) -> Option<Start> {
        (self.kind == Fact::Start.as_str()).then(|| serde_json::from_str(&self.detail).ok())?
    }

    /// Returns what retention removed; `None` unless this link records that.
    #[must_use]
    pub fn removed(&self) -> Option<Removed> {
        (self.kind == Fact::Retention.as_str()).then(|| serde_json::from_str(&self.detail).ok())?
    }
}

/// Why the chain is broken, at the first place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// There is no valid start.
    #[error("the start of the chain (link 0) is missing or was changed")]
    Start,
    /// Links are missing.
    #[error("{} missing: removed, and not by retention", links(*.from, *.to))]
    Missing {
        /// First missing link.
        from: i64,
        /// Last missing link.
        to: i64,
    },
    /// The row of a link is missing.
    #[error("row {row} is missing: link {seq} records it ({kind}), and retention did not remove it")]
    RowMissing {
        /// Row ID.
        row: i64,
        /// Link.
        seq: i64,
        /// Kind of the link.
        kind: String,
    },
    /// The content of a row does not match its link.
    #[error(
        "row {row} or its link {seq} was changed, inserted or moved: {columns} of the row do not match the link \
        (stored hash {stored}, computed {computed})"
    )]
    RowChanged {
        /// Row ID.
        row: i64,
        /// Columns among which the change is.
        columns: &'static str,
        /// Link.
        seq: i64,
        /// Stored hash.
        stored: String,
        /// Hash of the content.
        computed: String,
    },
    /// A link without a row does not follow from the one before.
    #[error("link {seq} was changed, inserted or moved (stored hash {stored}, computed {computed})")]
    LinkChanged {
        /// Link.
        seq: i64,
        /// Stored hash.
        stored: String,
        /// Computed hash.
        computed: String,
    },
    /// A row has no link.
    #[error("row {0} has no link in the chain: it was not inserted by this version of the monitor")]
    Unlinked(i64),
    /// There are more rows from before the chain than when it began.
    #[error("{found} rows have an ID from before the chain, which began with {rows}: some were inserted since")]
    OlderInserted {
        /// Rows now.
        found: i64,
        /// Rows when the chain began.
        rows: i64,
    },
    /// A row is complete without a link that says so.
    #[error("the outcome of row {0} has no link in the chain: it was not stored by this version of the monitor")]
    OutcomeUnlinked(i64),
    /// Triggers are missing or disabled, so the database does not refuse changes.
    #[error("{0} of the triggers that make the audit log append-only are missing or disabled")]
    Unprotected(i64),
    /// A position recorded earlier is not in the chain.
    #[error("link {seq} is not in the chain with the hash {hash}: {why}")]
    NotTheHead {
        /// Position.
        seq: i64,
        /// Hash.
        hash: String,
        /// What is there.
        why: &'static str,
    },
}

fn links(from: i64, to: i64) -> String {
    if from == to { format!("link {from} is") } else { format!("links {from} to {to} are") }
}

/// The state of a walk along the chain, link by link.
#[derive(Debug)]
pub struct Verifier {
    /// Position of the next link.
    next: i64,
    previous: Vec<u8>,
    removed_through: i64,
    links: u64,
    /// A recorded position that must occur.
    wanted: Option<Head>,
}

/// Result of verifying the whole chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    /// Number of verified links.
    pub links: u64,
    /// Position of the last link that retention removed; 0 if none.
    pub removed_through: i64,
    /// End of the chain.
    pub head: Head,
}

impl Verifier {
    /// Begins at `start`, or after what the newest `retention` link removed. `wanted` is a position that was recorded
    /// earlier and must be in the chain.
    ///
    /// # Errors
    /// If the start is invalid, or `wanted` was removed by retention or differs.
    pub fn new(start: Option<&Link>, retention: Option<&Link>, wanted: Option<Head>) -> Result<Self, Broken> {
        let start = start.filter(|start| start.seq == 0 && start.start().is_some()).ok_or(Broken::Start)?;
        let start_hash = start.chained_hash();
        let mut this = Self { next: 1, previous: start_hash, removed_through: 0, links: 0, wanted };
        if let Some(removed) = retention.and_then(Link::removed) {
            if removed.start != hex(&this.previous) {
                return Err(Broken::Start);
            }
            this.removed_through = removed.through;
            this.next = removed.through + 1;
            this.previous = unhex(&removed.hash).unwrap_or_default();
        }
        this.meet(this.next - 1, &this.previous.clone())?;
        Ok(this)
    }

    /// Checks the next link and its row.
    ///
    /// # Errors
    /// If the chain is broken there.
    pub fn check(&mut self, link: &Link, row: Option<&ChainedRow>) -> Result<(), Broken> {
        if link.seq != self.next {
            return Err(Broken::Missing { from: self.next, to: link.seq - 1 });
        }
        let fact = Fact::of(&link.kind).filter(|fact| fact.has_row() == link.row_id.is_some());
        if let (Some(fact), Some(id), None) = (fact, link.row_id, row) {
            return Err(Broken::RowMissing { row: id, seq: link.seq, kind: fact.as_str().to_owned() });
        }
        let computed = hash_of(&self.previous, link, row);
        if fact.is_none() || computed.as_slice() != link.hash {
            return Err(link.changed(fact, &computed));
        }
        self.next += 1;
        self.links += 1;
        self.previous.clone_from(&link.hash);
        self.meet(link.seq, &link.hash)
    }

    /// Ends the walk.
    ///
    /// # Errors
    /// If the chain ends before the recorded position.
    pub fn end(self) -> Result<Verified, Broken> {
        if let Some(Head { seq, hash }) = self.wanted {
            let why = match seq < self.next {
                true => "retention removed it, so it cannot be checked any more",
                false => "the chain ends before it, so later links were removed",
            };
            return Err(Broken::NotTheHead { seq, hash: hex(&hash), why });
        }
        let head = Head { seq: self.next - 1, hash: self.previous };
        Ok(Verified { links: self.links, removed_through: self.removed_through, head })
    }

    fn meet(&mut self, seq: i64, hash: &[u8]) -> Result<(), Broken> {
        let Some(wanted) = self.wanted.take_if(|wanted| wanted.seq == seq) else { return Ok(()) };
        if wanted.hash == hash {
            return Ok(());
        }
        let why = "another link is there, so the chain was rewritten";
        Err(Broken::NotTheHead { seq, hash: hex(&wanted.hash), why })
    }
}

impl Link {
    fn changed(&self, fact: Option<Fact>, computed: &Hash) -> Broken {
        let (seq, stored, computed) = (self.seq, hex(&self.hash), hex(computed));
        let columns = match fact {
            // The link of the request was verified before, unless retention removed it.
            Some(Fact::Ended) => "outcome, result or ended",
            Some(Fact::Begun) => "ts, who, role, address, action or parameters",
            _ => "columns",
        };
        match self.row_id {
            Some(row) => Broken::RowChanged { row, columns, seq, stored, computed },
            None => Broken::LinkChanged { seq, stored, computed },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A log: links, and rows by ID.
    #[derive(Clone)]
    struct Log {
        links: Vec<Link>,
        rows: Vec<ChainedRow>,
    }

    impl Log {
        fn new() -> Self {
            let detail = r#"{"last_id":7,"rows":7}"#.to_owned();
            let start = Link { seq: 0, ts: 1, kind: "start".to_owned(), row_id: None, detail, hash: Vec::new() };
            Self { links: vec![start], rows: Vec::new() }
        }

        fn append(&mut self, fact: Fact, row_id: Option<i64>, detail: &str) {
            let last = self.links.last().unwrap();
            let (seq, previous) = (last.seq + 1, last.chained_hash());
            let (kind, detail) = (fact.as_str().to_owned(), detail.to_owned());
            let mut link = Link { seq, ts: 10 * seq, kind, row_id, detail, hash: Vec::new() };
            let row = row_id.and_then(|id| self.rows.iter().find(|row| row.id == id));
            link.hash = hash_of(&previous, &link, row).to_vec();
            self.links.push(link);
        }

        fn begin(&mut self, id: i64) {
            let text = |name: &str| format!("{name} {id}");
            self.rows.push(ChainedRow {
                id,
                ts: 10 * id,
                who: text("who"),
                role: "admin".to_owned(),
                address: text("address"),
                action: text("action"),
                parameters: "{}".to_owned(),
                outcome: "begun".to_owned(),
                result: None,
                ended: None,
            });
            self.append(Fact::Begun, Some(id), "");
        }

        fn end(&mut self, id: i64) {
            let row = self.row(id);
            (row.outcome, row.result, row.ended) = ("done".to_owned(), Some("1".to_owned()), Some(11 * id));
            self.append(Fact::Ended, Some(id), "");
        }

        fn row(&mut self, id: i64) -> &mut ChainedRow {
            self.rows.iter_mut().find(|row| row.id == id).unwrap()
        }

        /// Two changes that overlap, one after them, and one that was interrupted.
        fn example() -> Self {
            let mut log = Self::new();
            log.begin(8);
            log.begin(9);
            log.end(9);
            log.end(8);
            log.begin(10);
            log.end(10);
            log.begin(11);
            log
        }

        /// What retention does: removes the links up to `through`, and rows without a remaining link.
        fn retain(&mut self, through: i64) {
            let hash_at = |seq| self.links.iter().find(|link| link.seq == seq).unwrap().chained_hash();
            let removed = Removed { through, hash: hex(&hash_at(through)), start: hex(&hash_at(0)) };
            self.append(Fact::Retention, None, &serde_json::to_string(&removed).unwrap());
            self.links.retain(|link| link.seq == 0 || link.seq > through);
            let links = &self.links;
            self.rows.retain(|row| links.iter().any(|link| link.row_id == Some(row.id)));
        }

        fn verify_with(&self, wanted: Option<Head>) -> Result<Verified, Broken> {
            let (start, rest): (Vec<_>, Vec<_>) = self.links.iter().partition(|link| link.seq == 0);
            let retention = rest.iter().rfind(|link| link.kind == "retention");
            let mut verifier = Verifier::new(start.first().copied(), retention.copied(), wanted)?;
            for link in &rest {
                verifier.check(link, self.rows.iter().find(|row| Some(row.id) == link.row_id))?;
            }
            verifier.end()
        }

        fn verify(&self) -> Result<Verified, Broken> {
            self.verify_with(None)
        }

        fn after(&self, change: impl FnOnce(&mut Self)) -> String {
            let mut log = self.clone();
            change(&mut log);
            log.verify().map_or_else(|broken| broken.to_string(), |verified| format!("intact {verified:?}"))
        }
    }

    #[test]
    fn an_intact_chain_is_verified_up_to_its_head() {
        let log = Log::example();
        let verified = log.verify().unwrap();
        assert_eq!((verified.links, verified.removed_through), (7, 0));
        assert_eq!(verified.head, log.links.last().unwrap().as_head());
        assert_eq!(verified.head.to_string().parse(), Ok(verified.head));
        assert_eq!(Log::new().verify().unwrap().head.seq, 0);
    }

    #[test]
    fn every_changed_column_is_detected_in_the_right_row() {
        let log = Log::example();
        type Change = fn(&mut ChainedRow);
        let changes: [(&str, Change); 10] = [
            ("ts, who", |row| row.ts += 1),
            ("ts, who", |row| row.who.push('x')),
            ("ts, who", |row| row.role = "viewer".to_owned()),
            ("ts, who", |row| row.address.clear()),
            ("ts, who", |row| row.action.push(' ')),
            ("ts, who", |row| row.parameters = "{ }".to_owned()),
            ("outcome, result", |row| row.outcome = "failed".to_owned()),
            ("outcome, result", |row| row.result = None),
            ("outcome, result", |row| row.result = Some(String::new())),
            ("outcome, result", |row| row.ended = None),
        ];
        for (columns, change) in changes {
            let found = log.after(|log| change(log.row(9)));
            assert!(found.contains("row 9 or its link") && found.contains(columns), "{found}");
        }
        // Text must not move from one column to the next.
        let found = log.after(|log| {
            let row = log.row(9);
            row.who.push_str(&std::mem::take(&mut row.role));
        });
        assert!(found.contains("row 9 or its link"), "{found}");
        let last = log.after(|log| log.row(11).who.clear());
        assert!(last.contains("row 11 or its link 7 was changed"), "{last}");
    }

    #[test]
    fn removed_inserted_and_swapped_rows_are_detected() {
        let log = Log::example();
        let row_removed = log.after(|log| log.rows.retain(|row| row.id != 10));
        assert!(row_removed.contains("row 10 is missing: link 5"), "{row_removed}");
        let both_removed = log.after(|log| {
            log.rows.retain(|row| row.id != 10);
            log.links.retain(|link| link.row_id != Some(10));
        });
        assert_eq!(both_removed, "links 5 to 6 are missing: removed, and not by retention");
        let renumbered = log.after(|log| {
            log.links.retain(|link| link.row_id != Some(10));
            log.links.iter_mut().filter(|link| link.seq > 6).for_each(|link| link.seq -= 2);
        });
        assert!(renumbered.contains("row 11 or its link 5 was"), "{renumbered}");
        let inserted = log.after(|log| {
            let mut link = log.links[5].clone();
            (link.seq, link.row_id) = (5, Some(12));
            log.links.iter_mut().filter(|link| link.seq >= 5).for_each(|link| link.seq += 1);
            log.links.insert(5, link);
            let row = ChainedRow { id: 12, ..log.row(10).clone() };
            log.rows.push(row);
        });
        assert!(inserted.contains("12"), "{inserted}");
        let swapped = log.after(|log| {
            log.row(8).id = 0;
            log.row(9).id = 8;
            log.row(0).id = 9;
        });
        assert!(swapped.contains("row 8 or its link"), "{swapped}");
        let links_swapped = log.after(|log| {
            log.links.swap(1, 2);
            (log.links[1].seq, log.links[2].seq) = (1, 2);
        });
        assert!(links_swapped.contains("link 1"), "{links_swapped}");
        let start_changed = log.after(|log| log.links[0].detail = r#"{"last_id":99,"rows":99}"#.to_owned());
        assert!(start_changed.contains('1') && !start_changed.starts_with("intact"), "{start_changed}");
        assert!(log.after(|log| log.links.retain(|link| link.seq > 0)).contains("start of the chain"));
    }

    #[test]
    fn a_chain_cut_at_its_end_is_detected_only_by_a_recorded_head() {
        let log = Log::example();
        let head = log.verify().unwrap().head;
        let mut cut = log.clone();
        cut.links.truncate(6);
        cut.rows.retain(|row| row.id != 11);
        assert!(cut.verify().is_ok(), "the chain alone does not show it");
        let found = cut.verify_with(Some(head.clone())).unwrap_err().to_string();
        assert!(found.contains("link 7") && found.contains("the chain ends before it"), "{found}");
        // Rewritten from one row on, with new hashes.
        let mut rewritten = Log::new();
        for id in 8..=11 {
            rewritten.begin(id);
        }
        for id in 8..=11 {
            rewritten.end(id);
        }
        let found = rewritten.verify_with(Some(head.clone())).unwrap_err().to_string();
        assert!(found.contains("the chain was rewritten"), "{found}");
        // A longer chain contains it.
        let mut longer = log;
        longer.end(11);
        assert!(longer.verify_with(Some(head)).is_ok());
    }

    #[test]
    fn retention_removes_the_beginning_and_leaves_a_link() {
        let mut log = Log::example();
        let (early, late) = (log.links[2].as_head(), log.links[5].as_head());
        // Row 8 began before link 3 and ended after it, so it stays, and its end covers all of it.
        log.retain(3);
        assert_eq!(log.rows.iter().map(|row| row.id).collect::<Vec<_>>(), [8, 10, 11]);
        let verified = log.verify().unwrap();
        assert_eq!((verified.links, verified.removed_through, verified.head.seq), (5, 3, 8));
        let changed = log.after(|log| log.row(8).who.clear());
        assert!(changed.contains("row 8 or its link"), "{changed}");
        assert!(log.verify_with(Some(late)).is_ok());
        assert!(log.verify_with(Some(early)).unwrap_err().to_string().contains("retention removed it"));
        log.begin(12);
        log.retain(6);
        assert_eq!(log.verify().unwrap().removed_through, 6);
        // Without its link, or with more removed than it says, the removal is not one by retention.
        let unsaid = log.after(|log| log.links.retain(|link| link.kind != "retention"));
        assert!(unsaid.contains("missing"), "{unsaid}");
        let more = log.after(|log| log.links.retain(|link| link.seq == 0 || link.seq > 7));
        assert!(more.contains("link 7 is missing"), "{more}");
        let start = log.after(|log| log.links[0].detail = r#"{"last_id":99,"rows":99}"#.to_owned());
        assert!(start.contains("start of the chain"), "{start}");
    }
}
