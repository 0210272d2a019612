//! `torusctl config`: the profiles that say where clusters are.

use crate::args::Global;
use crate::failure::Failure;
use crate::output::{Printer, Record, Style};
use crate::profile::{self, File, Profile};
use clap::Subcommand;
use serde::Serialize;
use std::path::PathBuf;

/// Without a subcommand: shows the profiles.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Show the profiles; what happens anyway when nothing else is asked for.
    #[arg(long)]
    view: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Set fields of a profile (of --profile, or the current one), making it if need be.
    Set {
        /// Such as etcd=http://10.0.0.5:2379,http://10.0.0.6:2379; nothing after the `=` unsets the field.
        #[arg(required = true, value_name = "FIELD=VALUE")]
        fields: Vec<String>,
    },
    /// Make a profile the current one.
    Use {
        /// Its name.
        name: String,
    },
    /// Forget a profile.
    Remove {
        /// Its name.
        name: String,
    },
}

/// A profile with its name, for lists.
#[derive(Serialize)]
struct Named {
    name: String,
    current: bool,
    #[serde(flatten)]
    profile: Profile,
}

impl Record for Named {
    const COLUMNS: &'static [&'static str] = &["PROFILE", "CURRENT", "ETCD", "USER", "CA FILE"];

    fn cells(&self, _: Style) -> Vec<String> {
        let path = |path: &Option<PathBuf>| path.as_ref().map(|path| path.display().to_string());
        vec![
            self.name.clone(),
            if self.current { "yes".into() } else { String::new() },
            self.profile.etcd.clone().unwrap_or_default(),
            self.profile.etcd_user.clone().unwrap_or_default(),
            path(&self.profile.etcd_ca).unwrap_or_default(),
        ]
    }
}

/// Shows or changes the configuration file.
pub fn run(global: &Global, args: Args, printer: Printer) -> Result<(), Failure> {
    if args.view && args.command.is_some() {
        return Err(Failure::usage("--view shows the profiles and changes none: leave it out, or the rest"));
    }
    let path = profile::path(global)?;
    let mut file = File::load(&path)?;
    let sentence = match args.command {
        None => return view(&file, printer),
        Some(Command::Set { fields }) => {
            let name = global.profile.clone().or_else(|| file.current.clone()).unwrap_or(profile::DEFAULT.into());
            check_name(&name)?;
            let profile = file.profiles.entry(name.clone()).or_default();
            for field in fields {
                let Some((key, value)) = field.split_once('=') else {
                    return Err(Failure::usage(format!("{field:?} sets nothing: expected FIELD=VALUE")));
                };
                profile.set(key, value)?;
            }
            file.current.get_or_insert_with(|| name.clone());
            format!("profile {name:?} saved in {}", path.display())
        }
        Some(Command::Use { name }) => {
            file.chosen(Some(&name), &path)?;
            file.current = Some(name.clone());
            format!("profile {name:?} is the current one now")
        }
        Some(Command::Remove { name }) => {
            file.chosen(Some(&name), &path)?;
            file.profiles.remove(&name);
            file.current = file.current.filter(|current| *current != name);
            format!("profile {name:?} removed from {}", path.display())
        }
    };
    file.save(&path)?;
    printer.done(&sentence, &listed(&file))
}

fn view(file: &File, printer: Printer) -> Result<(), Failure> {
    printer.list(&listed(file))
}

fn listed(file: &File) -> Vec<Named> {
    let current = file.current.as_deref().unwrap_or(profile::DEFAULT);
    let named = |(name, profile): (&String, &Profile)| Named {
        name: name.clone(),
        current: name == current,
        profile: profile.clone(),
    };
    file.profiles.iter().map(named).collect()
}

fn check_name(name: &str) -> Result<(), Failure> {
    let fine = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if name.is_empty() || name.len() > 63 || !name.chars().all(fine) || name.starts_with(['-', '.']) {
        return Err(Failure::usage(format!("{name:?} cannot name a profile"))
            .next("Use 1 to 63 letters, digits, '-', '_' and '.'."));
    }
    Ok(())
}
