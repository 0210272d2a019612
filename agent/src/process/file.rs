//! The configuration file, laid under flags and environment.
//!
//! A file's values become the *defaults* of the flags they are named after. So there is one definition of each setting,
//! one parser for its values, and one order: flag, environment, file, built-in default.

use super::args::Args;
use super::config::ConfigError;
use clap::error::ErrorKind;
use clap::{Arg, ArgAction, Command, CommandFactory as _, FromArgMatches as _};
use serde_yaml::{Mapping, Value};
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// Keys that a file cannot have: they are about the file itself, or end the program.
const NOT_IN_FILE: [&str; 4] = ["config", "completion", "help", "version"];
/// A configuration file larger than this is something else.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// How alike an unknown key and a known one must be for the latter to be suggested.
const ALIKE: f64 = 0.75;

/// Why there are no settings.
#[derive(Debug, thiserror::Error)]
pub enum Unreadable {
    /// The command line or the environment; also help and version. To be printed as it is.
    #[error(transparent)]
    Usage(#[from] clap::Error),
    /// The file.
    #[error(transparent)]
    File(#[from] ConfigError),
}

/// Reads flags, environment, and the file that they name. `line` begins with the program's name.
///
/// # Errors
/// See [`Unreadable`].
pub fn parse(line: impl IntoIterator<Item = OsString> + Clone) -> Result<Args, Unreadable> {
    // The first look finds the file. From here on, what is wrong is wrong in it.
    let matches = Args::command().try_get_matches_from(line.clone())?;
    let Some(path) = matches.get_one::<PathBuf>("config") else { return Ok(Args::from_arg_matches(&matches)?) };
    let command = with_defaults(Args::command(), &read(path)?, path)?;
    let matches = command.try_get_matches_from(line).and_then(|matches| Args::from_arg_matches(&matches));
    Ok(matches.map_err(|error| ConfigError::FileSyntax { path: path.into(), reason: told(&error) })?)
}

/// What clap says, without its advice about flags.
fn told(error: &clap::Error) -> String {
    debug_assert!(!matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion));
    let text = error.to_string();
    text.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned()
}

fn read(path: &Path) -> Result<Mapping, ConfigError> {
    let failed = |source| ConfigError::File { path: path.into(), source };
    let bytes = std::fs::metadata(path).map_err(failed)?.len();
    if bytes > FILE_BYTES_MAX {
        return Err(ConfigError::FileTooLarge { path: path.into(), bytes });
    }
    let text = std::fs::read_to_string(path).map_err(failed)?;
    let wrong = |reason: String| ConfigError::FileSyntax { path: path.into(), reason };
    match serde_yaml::from_str(&text).map_err(|e| wrong(e.to_string()))? {
        Value::Null => Ok(Mapping::new()),
        Value::Mapping(settings) => Ok(settings),
        _ => Err(wrong("expected lines of the form `setting: value`".into())),
    }
}

fn with_defaults(mut command: Command, settings: &Mapping, path: &Path) -> Result<Command, ConfigError> {
    for (key, value) in settings {
        let key = key.as_str().unwrap_or("(not a text)");
        let arg = command.get_arguments().find(|arg| arg.get_long() == Some(key));
        let Some(arg) = arg.filter(|_| !NOT_IN_FILE.contains(&key)) else {
            return Err(ConfigError::UnknownKey { path: path.into(), key: key.into(), near: near(&command, key) });
        };
        let values = values(arg, value).ok_or_else(|| ConfigError::FileSyntax {
            path: path.into(),
            reason: format!("{key} is {}", expected(arg)),
        })?;
        let id = arg.get_id().clone();
        command = command.mut_arg(id, |arg| arg.default_values(values));
    }
    Ok(command)
}

/// The words that a value would be on the command line.
fn values(arg: &Arg, value: &Value) -> Option<Vec<String>> {
    let word = |value: &Value| match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    };
    match (arg.get_action(), value) {
        (ArgAction::SetTrue, Value::Bool(flag)) => Some(vec![flag.to_string()]),
        (ArgAction::SetTrue, _) => None,
        (ArgAction::Append, Value::Sequence(list)) => list.iter().map(word).collect(),
        _ => word(value).map(|word| vec![word]),
    }
}

fn expected(arg: &Arg) -> &'static str {
    match arg.get_action() {
        ArgAction::SetTrue => "true or false",
        ArgAction::Append => "a text, or a list of texts",
        _ => "a text or a number",
    }
}

/// The known key that is most like `key`.
fn near(command: &Command, key: &str) -> Option<String> {
    let known = command.get_arguments().filter_map(Arg::get_long).filter(|known| !NOT_IN_FILE.contains(known));
    let likeness = known.map(|known| (strsim::jaro_winkler(known, key), known));
    let (alike, known) = likeness.max_by(|a, b| a.0.total_cmp(&b.0))?;
    (alike >= ALIKE).then(|| known.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    fn parse_with(file: &str, flags: &[&str]) -> Result<Args, Unreadable> {
        let mut config = tempfile::NamedTempFile::new().unwrap();
        config.write_all(file.as_bytes()).unwrap();
        let line = ["torus-agent", "--config", config.path().to_str().unwrap()];
        parse(line.iter().chain(flags).map(OsString::from).collect::<Vec<_>>())
    }

    #[test]
    fn the_file_gives_what_flags_do_not() {
        let file = "data-dir: /srv/torus\nport: 4711\nauto-join: true\nsize: 20GiB\ndisk: [/dev/a, /dev/b]\nhost: h\n\
                    etcd-prefix: /other/\n";
        let args = parse_with(file, &["--port", "99"]).unwrap();
        assert_eq!(args.data_dir, Some("/srv/torus".into()));
        assert_eq!((args.port, args.auto_join, args.size), (99, true, crate::units::Size(20 << 30)));
        assert_eq!((args.disk.len(), args.host.as_str(), args.meta.etcd_prefix.as_str()), (2, "h", "/other/"));
        assert_eq!(parse_with("", &[]).unwrap().port, 40_000);
        assert_eq!(parse_with("disk: /dev/a\n", &[]).unwrap().disk, [PathBuf::from("/dev/a")]);
    }

    #[test]
    fn what_is_wrong_with_a_file_is_said_by_name() {
        for (file, words) in [
            ("data-dri: /x\n", &["data-dri", "did you mean data-dir"][..]),
            ("zzz: 1\n", &["zzz is no setting"]),
            ("config: /x\n", &["config is no setting"]),
            ("port: many\n", &["many", "--port"]),
            ("port: [1, 2]\n", &["port is a text or a number"]),
            ("auto-join: maybe\n", &["auto-join is true or false"]),
            ("size: -3GiB\n", &["-3GiB"]),
            ("log-format: xml\n", &["xml", "--log-format"]),
            ("- a\n- b\n", &["expected lines"]),
            ("a: [\n", &["line"]),
        ] {
            let error = parse_with(file, &[]).unwrap_err().to_string();
            assert!(words.iter().all(|word| error.contains(word)), "{file:?}: {error}");
        }
        let missing = parse(["torus-agent", "--config", "/no/such.yaml"].map(OsString::from)).unwrap_err();
        assert!(missing.to_string().contains("/no/such.yaml"));
    }

    #[test]
    fn the_flags_are_sound() {
        Args::command().debug_assert();
    }
}
