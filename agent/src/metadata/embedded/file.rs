//! The file behind the embedded store: three redb tables, written in durable commits and read once, at the open.
//!
//! | table | key | value |
//! |---|---|---|
//! | `torus` | `format`, `revision` | a number |
//! | `keys` | key | (revision of its last write, lease or 0, value) |
//! | `leases` | lease | its term in seconds |
//!
//! redb holds a lock on the file for as long as it is open; its commits are copy-on-write with checksums, so a crash at
//! any write leaves the last commit.

use super::state::{Changes, Item, State};
use redb::{Database, DatabaseError, Durability, ReadableDatabase, ReadableTable, StorageError, TableDefinition};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use torus_core::meta::{LeaseId, Revision};

const ABOUT: TableDefinition<&str, u64> = TableDefinition::new("torus");
const KEYS: TableDefinition<&str, (i64, i64, &[u8])> = TableDefinition::new("keys");
const LEASES: TableDefinition<i64, u64> = TableDefinition::new("leases");

/// The newest layout of the tables that this program knows.
const FORMAT: u64 = 1;

/// Why a metadata file was not opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The lock on the file is taken.
    #[error(
        "the metadata file {path:?} is in use by another process: end that one first, or, to share metadata between \
         processes, use an etcd (--etcd http://HOST:2379)"
    )]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// It is a database, but not one that Torus made.
    #[error("the file {path:?} is not Torus's metadata: name another one after embedded:")]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// A later version of Torus made it.
    #[error("the metadata file {path:?} has format {found}, and this program knows up to {FORMAT}: use a newer Torus")]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u64,
    },
    /// Reading it failed, or it is damaged.
    #[error(
        "cannot open the metadata file {path:?}: check that the path is right, its disk is sound and you may write it"
    )]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What redb says.
        #[source]
        source: Box<redb::Error>,
    },
}

pub(super) struct File {
    db: Database,
}

impl File {
    /// Opens a file, making it if there is none, and reads all it holds.
    pub fn open(path: &Path) -> Result<(Self, State), OpenError> {
        let unusable = |source: redb::Error| OpenError::Unusable { path: path.into(), source: Box::new(source) };
        let db = Database::create(path).map_err(|error| match error {
            DatabaseError::DatabaseAlreadyOpen => OpenError::InUse { path: path.into() },
            // What has no redb header at all was never ours.
            DatabaseError::Storage(StorageError::Io(e)) if e.kind() == std::io::ErrorKind::InvalidData => {
                OpenError::Foreign { path: path.into() }
            }
            other => unusable(other.into()),
        })?;
        Self::from_database(db, path)
    }

    /// The same for a database that was opened already; `path` is what it is called.
    pub(super) fn from_database(db: Database, path: &Path) -> Result<(Self, State), OpenError> {
        let unusable = |source: redb::Error| OpenError::Unusable { path: path.into(), source: Box::new(source) };
        let file = Self { db };
        // No table at all: new, or the process that made it died before its first commit.
        if file.is_blank().map_err(unusable)? {
            file.initialize().map_err(unusable)?;
        }
        // Opening takes time on a slow disk, and leases begin a new term when it is over.
        let state = file.read(path, Instant::now())?;
        Ok((file, state))
    }

    fn is_blank(&self) -> Result<bool, redb::Error> {
        Ok(self.db.begin_read()?.list_tables()?.next().is_none())
    }

    fn initialize(&self) -> Result<(), redb::Error> {
        let txn = self.db.begin_write()?;
        {
            let mut about = txn.open_table(ABOUT)?;
            about.insert("format", FORMAT)?;
            about.insert("revision", 1)?;
            txn.open_table(KEYS)?;
            txn.open_table(LEASES)?;
        }
        Ok(txn.commit()?)
    }

    fn read(&self, path: &Path, now: Instant) -> Result<State, OpenError> {
        let unusable = |source: redb::Error| OpenError::Unusable { path: path.into(), source: Box::new(source) };
        let foreign = || OpenError::Foreign { path: path.into() };
        let txn = self.db.begin_read().map_err(|e| unusable(e.into()))?;
        let about = txn.open_table(ABOUT).map_err(|_| foreign())?;
        let number = |name: &str| -> Result<u64, OpenError> {
            Ok(about.get(name).map_err(|e| unusable(e.into()))?.ok_or_else(foreign)?.value())
        };
        let found = number("format")?;
        if found > FORMAT {
            return Err(OpenError::Newer { path: path.into(), found });
        }
        let revision = i64::try_from(number("revision")?).map_err(|_| foreign())?;
        let read = || -> Result<_, redb::Error> {
            let mut keys = BTreeMap::new();
            for row in txn.open_table(KEYS)?.iter()? {
                let (key, item) = row?;
                let (modified, lease, value) = item.value();
                let lease = (lease != 0).then_some(LeaseId(lease));
                let item = Item { value: value.into(), modified: Revision(modified), lease };
                keys.insert(key.value().to_string(), item);
            }
            let mut leases = BTreeMap::new();
            for row in txn.open_table(LEASES)?.iter()? {
                let (id, ttl_s) = row?;
                leases.insert(LeaseId(id.value()), Duration::from_secs(ttl_s.value()));
            }
            Ok((keys, leases))
        };
        let (keys, leases) = read().map_err(unusable)?;
        Ok(State::new(Revision(revision), keys, leases, now))
    }

    /// Makes a batch durable. After an error nobody knows whether it is: the file takes no more.
    pub fn commit(&self, changes: &Changes, revision: Revision) -> Result<(), redb::Error> {
        let mut txn = self.db.begin_write()?;
        txn.set_durability(Durability::Immediate)?;
        {
            let mut keys = txn.open_table(KEYS)?;
            for (key, item) in &changes.keys {
                match item {
                    Some(Item { value, modified, lease }) => {
                        keys.insert(key.as_str(), (modified.0, lease.map_or(0, |id| id.0), value.as_slice()))?;
                    }
                    None => {
                        keys.remove(key.as_str())?;
                    }
                }
            }
            let mut leases = txn.open_table(LEASES)?;
            for (id, ttl) in &changes.leases {
                match ttl {
                    Some(ttl) => {
                        leases.insert(id.0, ttl.as_secs())?;
                    }
                    None => {
                        leases.remove(id.0)?;
                    }
                }
            }
            txn.open_table(ABOUT)?.insert("revision", revision.0.unsigned_abs())?;
        }
        Ok(txn.commit()?)
    }
}
