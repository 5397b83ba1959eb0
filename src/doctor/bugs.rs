//! What is known to be wrong with versions of Redis, as far as it touches streams and this monitor.
//! Sources: Redis' release notes (`00-RELEASENOTES` of each branch) and the numbers named there.

use super::report::{Finding, worth_knowing, wrong};

/// A version of Redis: major, minor, patch.
pub type Version = (u32, u32, u32);

/// The oldest Redis that is watched with everything it should have.
pub const LEAST: Version = (6, 2, 0);
/// From here on Redis knows how many entries a group has not read.
const KNOWS_LAG: Version = (7, 0, 0);

/// Reads `7.0.15`; what comes behind is passed over.
#[must_use]
pub fn version(text: &str) -> Option<Version> {
    let mut numbers = text.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    let mut next = || numbers.next()?.ok();
    Some((next()?, next()?, next().unwrap_or(0)))
}

/// A bug: in which versions it is, from the first up to and without the second.
struct Bug {
    id: &'static str,
    within: &'static [(Version, Version)],
    is_wrong: bool,
    what: &'static str,
    means: &'static str,
    remedy: &'static str,
}

const BUGS: &[Bug] = &[
    // "Fix excessive stream trimming due to an overflow (#10068)", 6.2.7; the report is #9410. And
    // "Fix XTRIM or XADD with LIMIT may delete more entries than the limit (#9048)", 6.2.5.
    Bug {
        id: "redis.bug_trim_overflow",
        within: &[((6, 2, 0), (6, 2, 7))],
        is_wrong: true,
        what: "trims too much in some streams (redis#10068)",
        means: "XTRIM MINID, by which the janitor removes finished entries, may delete waiting ones when ids in one \
                stream lie far apart",
        remedy: "upgrade to 6.2.7 or later; until then set MONITOR_JANITOR_EXCLUDE=*",
    },
    // CVE-2022-31144, fixed in 7.0.4; CVE-2022-35951, fixed in 7.0.5.
    Bug {
        id: "redis.bug_autoclaim",
        within: &[((7, 0, 0), (7, 0, 5))],
        is_wrong: true,
        what: "has two holes in XAUTOCLAIM (CVE-2022-31144, CVE-2022-35951)",
        means: "who may send that command can overwrite the server's memory",
        remedy: "upgrade to 7.0.5 or later",
    },
    // CVE-2025-62507, fixed in 8.2.3; XACKDEL came with 8.2.0.
    Bug {
        id: "redis.bug_ackdel",
        within: &[((8, 2, 0), (8, 2, 3))],
        is_wrong: true,
        what: "has a hole in XACKDEL (CVE-2025-62507)",
        means: "who sends that command with many ids crashes the server or runs code in it",
        remedy: "upgrade to 8.2.3 or later",
    },
    // #13338 and #13473, fixed in 7.2.7 and 7.4.2; #13958, fixed in 7.2.9.
    Bug {
        id: "redis.bug_lag",
        within: &[((7, 0, 0), (7, 2, 9)), ((7, 4, 0), (7, 4, 2))],
        is_wrong: false,
        what: "counts a group's undelivered entries wrongly after deletions and trimming (redis#13338, #13473, #13958)",
        means: "a queue may show more waiting than there is; the monitor never shows more than the stream holds",
        remedy: "upgrade to 7.2.9, 7.4.2 or later where the figures matter",
    },
];

/// What is to be said of this version, if anything.
#[must_use]
pub fn findings(version: Version, text: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    if version < LEAST {
        findings.push(wrong(
            "redis.too_old",
            format!("Redis {text} is too old"),
            "it cannot trim a stream by id or pick from a hash, so that cleaning up is slow and task latencies are not \
             taken in",
            "upgrade to 6.2.7 or later, better 7.2",
        ));
    } else if version < KNOWS_LAG {
        findings.push(worth_knowing(
            "redis.without_lag",
            format!("Redis {text} does not know how many entries a group has not read"),
            "the monitor works it out from the stream's length where it can, and says \"at least 100\" where not",
            "upgrade to 7.2 or later for exact figures",
        ));
    }
    for bug in BUGS.iter().filter(|bug| bug.within.iter().any(|(first, fixed)| (*first..*fixed).contains(&version))) {
        let say = if bug.is_wrong { wrong } else { worth_knowing };
        findings.push(say(bug.id, format!("Redis {text} {}", bug.what), bug.means, bug.remedy));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said_of(text: &str) -> Vec<&'static str> {
        findings(version(text).unwrap(), text).iter().map(|finding| finding.id).collect()
    }

    #[test]
    fn versions_are_read_as_servers_say_them() {
        assert_eq!(version("7.0.15"), Some((7, 0, 15)));
        assert_eq!(version("8.2"), Some((8, 2, 0)));
        assert_eq!(version("7.2.4-rc1"), Some((7, 2, 4)));
        assert_eq!(version("unstable"), None);
    }

    #[test]
    fn a_bug_is_told_of_the_versions_that_have_it_and_of_no_other() {
        for (version, ids) in [
            ("5.0.14", &["redis.too_old"][..]),
            ("6.0.16", &["redis.too_old"]),
            ("6.2.0", &["redis.without_lag", "redis.bug_trim_overflow"]),
            ("6.2.6", &["redis.without_lag", "redis.bug_trim_overflow"]),
            ("6.2.7", &["redis.without_lag"]),
            ("7.0.4", &["redis.bug_autoclaim", "redis.bug_lag"]),
            ("7.0.5", &["redis.bug_lag"]),
            ("7.2.8", &["redis.bug_lag"]),
            ("7.2.9", &[]),
            ("7.4.1", &["redis.bug_lag"]),
            ("7.4.2", &[]),
            ("8.0.0", &[]),
            ("8.2.2", &["redis.bug_ackdel"]),
            ("8.2.3", &[]),
        ] {
            assert_eq!(said_of(version), ids, "{version}");
        }
    }
}
