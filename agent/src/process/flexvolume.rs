//! Puts the FlexVolume driver where a kubelet looks for it.
//!
//! The kubelet runs whatever executable it finds at `coreos.com~torus/torus` below its plugin directory, at any moment. So the
//! driver is written beside its place and renamed: there is the old one, or the new one, and nothing in between.

use super::StartError;
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// The driver's directory, below the kubelet's.
pub const DRIVER_DIR: &str = "coreos.com~torus";
/// The driver's file there.
pub const DRIVER: &str = "torus";
/// The file beside it that says where the node service is.
pub const SOCKET_FILE: &str = "socket";
/// The program that becomes the driver: found beside this one.
const PROGRAM: &str = "torus-flexvolume";

/// Installs the driver below `directory`; it will speak to `socket`.
///
/// # Errors
/// When there is no driver beside this program, or the directory cannot be written to.
pub fn install(directory: &Path, socket: &Path) -> Result<(), StartError> {
    let program = std::env::current_exe().map_err(|error| StartError::System("find this program", error))?;
    let program = program.with_file_name(PROGRAM);
    let bytes = fs::read(&program).map_err(|source| StartError::NoFlexVolume { program, source })?;
    write(directory, &bytes, socket).map_err(|source| StartError::FlexVolume { directory: directory.into(), source })
}

fn write(directory: &Path, driver: &[u8], socket: &Path) -> io::Result<()> {
    let place = directory.join(DRIVER_DIR);
    fs::create_dir_all(&place)?;
    let put = |name: &str, bytes: &[u8], mode: u32| {
        let path = place.join(name);
        if fs::read(&path).is_ok_and(|found| found == bytes) {
            return Ok(());
        }
        // The kubelet passes over what begins with a dot.
        let temporary: PathBuf = place.join(format!(".{name}.tmp"));
        fs::write(&temporary, bytes)?;
        fs::set_permissions(&temporary, Permissions::from_mode(mode))?;
        fs::rename(&temporary, &path)
    };
    put(SOCKET_FILE, socket.as_os_str().as_encoded_bytes(), 0o644)?;
    put(DRIVER, driver, 0o755)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_driver_is_put_in_place_whole_and_again() {
        let directory = tempfile::tempdir().unwrap();
        for driver in [&b"first"[..], b"first", b"second"] {
            write(directory.path(), driver, Path::new("/run/torus/node.sock")).unwrap();
            let place = directory.path().join(DRIVER_DIR);
            assert_eq!(fs::read(place.join(DRIVER)).unwrap(), driver);
            assert_eq!(fs::metadata(place.join(DRIVER)).unwrap().permissions().mode() & 0o777, 0o755);
            assert_eq!(fs::read(place.join(SOCKET_FILE)).unwrap(), b"/run/torus/node.sock");
            assert_eq!(fs::read_dir(place).unwrap().count(), 2);
        }
    }
}
