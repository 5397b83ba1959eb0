//! Known bugs of Redis versions that affect streams or this monitor. Sources: Redis' release notes (`00-RELEASENOTES` of each
//! branch) and the issues named below.

use super::report::{Finding, worth_knowing, wrong};

/// Redis version: major, minor, patch.
pub type Version = (u32, u32, u32);

/// Minimum version that supports all features.
pub const LEAST: Version = (6, 2, 0);
/// First version that reports the lag of a group.
const KNOWS_LAG: Version = (7, 0, 0);

/// Parses `7.0.15`; ignores a suffix.
#[must_use]
pub fn version(text: &str) -> Option<Version> {
    let mut numbers = text.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    let mut next = || numbers.next()?.ok();
    Some((next()?, next()?, next().unwrap_or(0)))
}

/// A bug, and the affected versions: from the first, up to but excluding the second.
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
        what: "may trim too much in some streams (redis#10068)",
        means: "XTRIM MINID, which the janitor uses to remove finished messages, may delete waiting messages when \
         IDs in one stream are far apart",
        remedy: "upgrade to 6.2.7 or later; until then set MONITOR_JANITOR_EXCLUDE=*",
    },
    // CVE-2022-31144, fixed in 7.0.4; CVE-2022-35951, fixed in 7.0.5.
    Bug {
        id: "redis.bug_autoclaim",
        within: &[((7, 0, 0), (7, 0, 5))],
        is_wrong: true,
        what: "has two vulnerabilities in XAUTOCLAIM (CVE-2022-31144, CVE-2022-35951)",
        means: "clients that may run this command can overwrite server memory",
        remedy: "upgrade to 7.0.5 or later",
    },
    // CVE-2025-62507, fixed in 8.2.3; XACKDEL came with 8.2.0.
    Bug {
        id: "redis.bug_ackdel",
        within: &[((8, 2, 0), (8, 2, 3))],
        is_wrong: true,
        what: "has a vulnerability in XACKDEL (CVE-2025-62507)",
        means: "clients that send this command with many IDs can crash the server or execute code",
        remedy: "upgrade to 8.2.3 or later",
    },
    // #13338 and #13473, fixed in 7.2.7 and 7.4.2; #13958, fixed in 7.2.9.
    Bug {
        id: "redis.bug_lag",
        within: &[((7, 0, 0), (7, 2, 9)), ((7, 4, 0), (7, 4, 2))],
        is_wrong: false,
        what: "reports a wrong group lag after deletions and trimming (redis#13338, #13473, #13958)",
        means: "a queue may show more undelivered messages than exist, at most the length of the stream",
        remedy: "upgrade to 7.2.9, 7.4.2 or later if exact figures matter",
    },
];

/// Returns the findings for this version.
#[must_use]
pub fn findings(version: Version, text: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    if version < LEAST {
        findings.push(wrong(
            "redis.too_old",
            format!("Redis {text} is too old"),
            "it cannot trim streams by ID or select hash fields, so cleanup is slow and task latencies are not \
             recorded",
            "upgrade to 6.2.7 or later, preferably 7.2",
        ));
    } else if version < KNOWS_LAG {
        findings.push(worth_knowing(
            "redis.without_lag",
            format!("Redis {text} does not report the lag of consumer groups"),
            "the monitor computes it from the stream length where possible and shows a lower bound such as \"≥ 100\" \
             otherwise",
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
    fn parses_versions_as_reported_by_servers() {
        assert_eq!(version("7.0.15"), Some((7, 0, 15)));
        assert_eq!(version("8.2"), Some((8, 2, 0)));
        assert_eq!(version("7.2.4-rc1"), Some((7, 2, 4)));
        assert_eq!(version("unstable"), None);
    }

    #[test]
    fn bugs_are_reported_for_affected_versions_only() {
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
