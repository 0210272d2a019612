//! What is kept, and who attends to it. Decides; opens, reads and closes nothing but by dropping it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Most descriptors that are kept.
pub const HELD_MAX: usize = 1024;
/// Longest name.
const NAME_BYTES_MAX: usize = 64;

/// One connection.
pub type Client = u64;

/// What is kept, by name.
#[derive(Debug)]
pub struct Store<F> {
    held: BTreeMap<String, Held<F>>,
    dead_time: Duration,
}

#[derive(Debug)]
struct Held<F> {
    what: F,
    attended: Attended,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Attended {
    By(Client),
    /// By nobody, since then.
    Not(Instant),
}

impl<F> Store<F> {
    /// Nothing, of which each lasts for `dead_time` without anybody.
    pub fn new(dead_time: Duration) -> Self {
        Self { held: BTreeMap::new(), dead_time }
    }

    /// Keeps `what` under `name`, in the place of what was kept under it.
    ///
    /// # Errors
    /// When the name is none, or there is too much.
    pub fn keep(&mut self, name: &str, what: F, client: Client) -> Result<(), &'static str> {
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"._-".contains(&byte);
        if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.bytes().all(plain) {
            return Err("that is no name");
        }
        if self.held.len() >= HELD_MAX && !self.held.contains_key(name) {
            return Err("too much is kept already");
        }
        self.held.insert(name.into(), Held { what, attended: Attended::By(client) });
        Ok(())
    }

    /// What is kept under `name`, to which `client` attends from now on.
    pub fn take(&mut self, name: &str, client: Client) -> Option<&F> {
        let held = self.held.get_mut(name)?;
        held.attended = Attended::By(client);
        Some(&held.what)
    }

    /// Whether something is kept under `name`.
    pub fn has(&self, name: &str) -> bool {
        self.held.contains_key(name)
    }

    /// Keeps nothing under `name` any more.
    pub fn release(&mut self, name: &str) {
        self.held.remove(name);
    }

    /// `client` has gone: nobody attends to what it attended to.
    pub fn gone(&mut self, client: Client, now: Instant) -> Vec<&str> {
        let mut left = Vec::new();
        for (name, held) in &mut self.held {
            if held.attended == Attended::By(client) {
                held.attended = Attended::Not(now);
                left.push(name.as_str());
            }
        }
        left
    }

    /// Lets go of what nobody has attended to for too long.
    pub fn expire(&mut self, now: Instant) -> Vec<String> {
        let dead_time = self.dead_time;
        let is_late = |held: &Held<F>| match held.attended {
            Attended::Not(since) => now.saturating_duration_since(since) >= dead_time,
            Attended::By(_) => false,
        };
        let late: Vec<_> = self.held.iter().filter(|(_, held)| is_late(held)).map(|(name, _)| name.clone()).collect();
        for name in &late {
            self.held.remove(name);
        }
        late
    }

    /// When [`expire`](Self::expire) has something to do next.
    pub fn next(&self) -> Option<Instant> {
        let since = self.held.values().filter_map(|held| match held.attended {
            Attended::Not(since) => Some(since),
            Attended::By(_) => None,
        });
        since.min().map(|since| since + self.dead_time)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEAD: Duration = Duration::from_secs(10);

    #[test]
    fn what_nobody_attends_to_ends_in_time_and_not_before() {
        let start = Instant::now();
        let mut store = Store::new(DEAD);
        store.keep("a", 'a', 1).unwrap();
        store.keep("b", 'b', 2).unwrap();
        assert_eq!(store.next(), None);
        assert_eq!(store.gone(1, start), ["a"]);
        assert_eq!(store.next(), Some(start + DEAD));
        assert!(store.expire(start + DEAD - Duration::from_millis(1)).is_empty());
        assert_eq!(store.take("a", 3), Some(&'a'));
        assert!(store.expire(start + 2 * DEAD).is_empty(), "somebody has come");
        store.gone(3, start + 2 * DEAD);
        assert_eq!(store.expire(start + 3 * DEAD), ["a"]);
        assert!(!store.has("a") && store.has("b"));
        assert_eq!(store.take("a", 4), None);
    }

    #[test]
    fn the_youngest_client_attends() {
        let now = Instant::now();
        let mut store = Store::new(DEAD);
        store.keep("a", 1, 1).unwrap();
        store.keep("a", 2, 2).unwrap();
        assert!(store.gone(1, now).is_empty());
        assert_eq!(store.take("a", 3), Some(&2));
        store.release("a");
        store.release("a");
        assert!(!store.has("a"));
    }

    #[test]
    fn names_and_numbers_have_limits() {
        let mut store = Store::new(DEAD);
        for bad in ["", "../a", "A", "a b", "a\0", &"a".repeat(65)] {
            assert!(store.keep(bad, (), 1).is_err(), "{bad:?}");
        }
        for number in 0..HELD_MAX {
            store.keep(&number.to_string(), (), 1).unwrap();
        }
        assert!(store.keep("one-more", (), 1).is_err());
        store.keep("0", (), 2).unwrap();
    }
}
