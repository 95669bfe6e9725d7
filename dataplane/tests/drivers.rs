//! The kernel drivers by themselves: a listener accepts, the connection echoes, the end is told.
//!
//! The relay suite covers receiving, sending and stalling; this is what it leaves out.
#![forbid(unsafe_code)]

#[path = "common/skip.rs"]
mod skip;

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use dataplane::io::epoll::Epoll;
use dataplane::io::uring::Uring;
use dataplane::io::{Driver, Event, Submitted, Token};

/// Longest wait for anything.
const PATIENCE: Duration = Duration::from_secs(20);
const LISTENER: Token = Token(1);
const STREAM: Token = Token(2);
const FLIGHT: Token = Token(3);

fn accepts_echoes_and_tells_the_end(mut driver: impl Driver<Socket = Arc<TcpStream>>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
    let address = listener.local_addr().expect("it is bound");
    driver.listen(listener, LISTENER).expect("it can be listened on");
    let mut client = TcpStream::connect(address).expect("it listens");
    client.write_all(b"early").expect("the kernel queues it");

    let (mut socket, mut received, mut ended) = (None, Vec::new(), false);
    let give_up = Instant::now() + PATIENCE;
    while !ended {
        assert!(Instant::now() < give_up, "received {received:?}");
        let mut accepted = None;
        let on = &mut |event: Event<'_, Arc<TcpStream>>| match event {
            Event::Accepted(token, stream) => {
                assert_eq!(token, LISTENER);
                accepted = Some(stream);
            }
            Event::Received(token, bytes) => {
                assert_eq!(token, STREAM);
                received.extend_from_slice(bytes);
            }
            Event::Ended(token, result) => {
                assert_eq!(token, STREAM);
                assert!(result.is_ok());
                ended = true;
            }
            Event::Landed(_) | Event::Ready(_) => {}
        };
        driver.poll(Some(Duration::from_millis(100)), on).expect("the driver goes on");
        if let Some(stream) = accepted {
            driver.adopt(&stream, STREAM).expect("a stream can be received from");
            socket = Some(stream);
        }
        if received == b"early" {
            let socket = socket.as_ref().expect("bytes come behind the connection");
            let sent = driver.send(socket, FLIGHT, std::mem::take(&mut received));
            assert!(matches!(sent, Submitted::Now(landed) if landed.result.is_ok()));
            let mut echo = [0; 5];
            client.read_exact(&mut echo).expect("the echo comes");
            assert_eq!(&echo, b"early");
            client.shutdown(Shutdown::Write).expect("it is connected");
        }
    }
}

#[test]
fn epoll_accepts_echoes_and_tells_the_end() {
    accepts_echoes_and_tells_the_end(Epoll::new(Instant::now()).expect("epoll is always there"));
}

#[test]
fn uring_accepts_echoes_and_tells_the_end() {
    if skip::uring_works() {
        accepts_echoes_and_tells_the_end(Uring::new(Instant::now()).expect("it was probed"));
    }
}
