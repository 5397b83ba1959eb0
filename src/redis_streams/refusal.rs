//! What a server's error says about the connection that it came over, and about the server's state: one place for
//! workers and the monitor.

/// The code of an error, also of one that came from inside a script: before 7.0 Redis answers those as
/// `ERR Error running script (…): -READONLY …`.
pub(super) fn code<'a>(code: &'a str, detail: Option<&'a str>) -> &'a str {
    if code != "ERR" {
        return code;
    }
    // Redis 7 answers so when a script runs what its user may not.
    if detail.is_some_and(|detail| detail.starts_with("The user executing the script can't")) {
        return "NOPERM";
    }
    let inside = detail.filter(|detail| detail.contains("script")).and_then(|detail| detail.rsplit_once(": -"));
    let word = inside.and_then(|(_, inside)| inside.split_whitespace().next()).unwrap_or_default();
    let is_code = word.len() > 1 && word.bytes().all(|byte| byte.is_ascii_uppercase());
    if is_code { word } else { code }
}

/// Whether a connection is of no further use after this error: the server behind it is not, or not yet, the one to work
/// with, and the next connection may reach another one.
pub(super) fn ends_connection(code: &str) -> bool {
    matches!(
        code,
        "READONLY" | "MASTERDOWN" | "CLUSTERDOWN" | "LOADING" | "UNKILLABLE" | "UNBLOCKED" | "NOAUTH" | "NOREPLICAS"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_ends_with_a_server_that_is_not_or_not_yet_the_one_to_work_with() {
        for code in ["READONLY", "MASTERDOWN", "CLUSTERDOWN", "LOADING", "NOREPLICAS"] {
            assert!(ends_connection(code), "{code}");
        }
        for code in ["ERR", "WRONGTYPE", "OOM", "MISCONF", "NOSCRIPT", "BUSYGROUP", "NOPERM", ""] {
            assert!(!ends_connection(code), "{code}");
        }
    }

    #[test]
    fn an_error_from_inside_a_script_has_its_own_code() {
        let older = "Error running script (call to f_1c2): @user_script:3: @user_script: 3: -READONLY You can't write \
                     against a read only replica.";
        assert_eq!(code("ERR", Some(older)), "READONLY");
        let older = "Error running script (call to f_1c2): @user_script:3: @user_script: 3: -OOM command not allowed \
                     when used memory > 'maxmemory'.";
        assert_eq!(code("ERR", Some(older)), "OOM");
        let denied =
            "The user executing the script can't run this command or subcommand script: 11a6, on @user_script:15.";
        assert_eq!(code("ERR", Some(denied)), "NOPERM");
        assert_eq!(code("READONLY", Some("You can't write against a read only replica. script: 1c2")), "READONLY");
        for detail in [None, Some("unknown command"), Some("Error running script: -1 is no index")] {
            assert_eq!(code("ERR", detail), "ERR");
        }
    }
}
