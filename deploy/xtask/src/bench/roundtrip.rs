//! What the network costs here: 4 KiB there, 32 bytes back, over TCP on the loopback address.

use anyhow::{Context, Result};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

const REQUEST_BYTES: usize = 4096;
const ANSWER_BYTES: usize = 32;

/// The mean of as many round trips as fit into `time`.
pub fn mean(time: Duration) -> Result<Duration> {
    let listener = TcpListener::bind("127.0.0.1:0").context("cannot listen on 127.0.0.1")?;
    let address = listener.local_addr().context("cannot tell where")?;
    let echo = thread::spawn(move || -> std::io::Result<()> {
        let (mut stream, _) = listener.accept()?;
        stream.set_nodelay(true)?;
        let mut request = [0; REQUEST_BYTES];
        // Ends when the other side closes.
        while stream.read_exact(&mut request).is_ok() {
            stream.write_all(&[0; ANSWER_BYTES])?;
        }
        Ok(())
    });
    let measured = ask(address, time).context("a TCP exchange on 127.0.0.1 failed");
    let echoed = echo.join().ok().context("the echoing thread panicked")?;
    echoed.context("echoing failed")?;
    measured
}

fn ask(address: std::net::SocketAddr, time: Duration) -> std::io::Result<Duration> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    let started = Instant::now();
    let mut count = 0;
    while started.elapsed() < time || count == 0 {
        stream.write_all(&[0; REQUEST_BYTES])?;
        stream.read_exact(&mut [0; ANSWER_BYTES])?;
        count += 1;
    }
    Ok(started.elapsed() / count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_trip_takes_some_time_but_not_long() {
        let mean = mean(Duration::from_millis(50)).unwrap();
        assert!(mean > Duration::ZERO && mean < Duration::from_millis(50), "{mean:?}");
    }
}
