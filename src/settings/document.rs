//! The table of settings as people read it: docs/settings.md.

use std::fmt::Write as _;

use super::{Entry, TABLE};

/// All settings as Markdown, a table for each group; then `worker`, those of worker processes: variable,
/// default, what it is.
#[must_use]
pub fn document(worker: &[(&str, &str, &str)]) -> String {
    let mut text = "# Settings

Made by `shepherd-monitor settings > docs/settings.md` from the table by which the program reads them.

Each is an environment variable and a flag of `shepherd-monitor serve`; the flag wins, and what is empty counts as not
given. A value that cannot be used stops the start with one line that names it and says what was expected. Times are
`3`, `3s`, `500ms`, `5m` or `1h`; a bare number is seconds. Secrets are marked 🔒: they are never shown, and a variable
is a better place for them than a flag, which others on the machine can read. A secret can also be read from the file that
its variable with `_FILE` names, or from a systemd credential of its name.
"
    .to_owned();
    let mut group = "";
    for entry in TABLE {
        if entry.group != group {
            group = entry.group;
            _ = write!(text, "\n## {group}\n\n| variable | flag | default | |\n| --- | --- | --- | --- |\n");
        }
        text.push_str(&row(entry));
    }
    text.push_str(
        "\n## Of worker processes\n\nRead by [the library](worker.md) from the environment of each worker; there are no \
         flags.\n\n| variable | default | |\n| --- | --- | --- |\n",
    );
    for (name, default, help) in worker {
        _ = writeln!(text, "| `{name}` | {} | {} |", code(default), cell(help));
    }
    text
}

fn row(entry: &Entry) -> String {
    let secret = if entry.secret { " 🔒" } else { "" };
    format!("| `{}`{secret} | `--{}` | {} | {} |\n", entry.env, entry.flag(), code(entry.default), cell(entry.help))
}

fn code(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!("`{}`", cell(text)) }
}

/// A text that does not end its cell.
fn cell(text: &str) -> String {
    text.replace('|', "\\|")
}
