//! Names of volumes, from the names that a control plane gives them.
//!
//! `pvc-…` is a volume's name as it is. CSI allows more: up to 128 characters of nearly any kind. Where such a name is none for
//! a volume, the volume is called by its digest, so that the same name always means the same volume.

use torus_agent::grpc::Failure;
use torus_agent::metadata::check_name;
use xxhash_rust::xxh3::xxh3_128;

/// The longest name that CSI allows.
const NAME_BYTES_MAX: usize = 128;

/// The name of the volume that a control plane calls `asked`.
pub fn of(asked: &str) -> Result<String, Failure> {
    if asked.is_empty() {
        return Err(Failure::invalid("the volume's name is missing"));
    }
    if asked.len() > NAME_BYTES_MAX || asked.chars().any(char::is_control) {
        let shown: String = asked.chars().take(40).collect();
        return Err(Failure::invalid(format!(
            "{shown:?} is not a name for a volume: it has up to {NAME_BYTES_MAX} bytes and no control characters"
        )));
    }
    Ok(match check_name(asked) {
        Ok(()) => asked.to_owned(),
        Err(_) => format!("csi-{:032x}", xxh3_128(asked.as_bytes())),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_name_stays_and_another_has_one_digest() {
        assert_eq!(of("pvc-0a1b").unwrap(), "pvc-0a1b");
        let odd = of("Sanity/../Volume 1").unwrap();
        assert!(check_name(&odd).is_ok() && odd.starts_with("csi-"), "{odd}");
        assert_eq!(odd, of("Sanity/../Volume 1").unwrap());
        assert_ne!(odd, of("Sanity/../Volume 2").unwrap());
        assert!(check_name(&of(&"A".repeat(128)).unwrap()).is_ok());
        for bad in ["", "a\0b", "a\nb", &"a".repeat(129)] {
            assert!(of(bad).is_err(), "{bad:?}");
        }
    }
}
