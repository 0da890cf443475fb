//! A folder grows as far as it may, whichever way.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use minivm_machine::folders::{Access, Folder};
use rustix::io::Errno;
use tempfile::{TempDir, tempdir};

use crate::client::{APPEND, Client, RDWR, ROOT, TRUNC, WRONLY, number, op};

const LIMIT: u64 = 1 << 20;

fn limited() -> (TempDir, Client) {
    let place = tempdir().unwrap();
    fs::write(place.path().join("old"), vec![1; 100_000]).unwrap();
    let sparse = File::create(place.path().join("sparse")).unwrap();
    sparse.set_len(10 << 20).unwrap();
    let mut folder = Folder::new(place.path(), Access::ReadWrite);
    folder.limits.growth = LIMIT;
    let client = Client::new(&folder);
    (place, client)
}

fn free(client: &Client) -> u64 {
    let reply = client.call(op::STATFS, ROOT, &[]).unwrap();
    assert_eq!(number(&reply, 0), LIMIT / 4096);
    number(&reply, 16) * 4096
}

#[test]
fn every_way_to_grow_ends() {
    let (place, client) = limited();
    assert_eq!(free(&client), LIMIT);
    let at = client.create("file", RDWR, 0o644).unwrap();
    let piece = vec![1; 64 << 10];
    let write = |offset: u64, flags: u32| client.write(at, offset, &piece, flags);
    let fill = (0..)
        .take_while(|&number| write(number * piece.len() as u64, 0).is_ok())
        .count();
    assert_eq!(fill, 15, "of 16 pieces, and the name");
    assert_eq!(write(1 << 40, 0), Err(Errno::NOSPC));
    assert_eq!(write(0, APPEND), Err(Errno::NOSPC));
    assert_eq!(client.fallocate(at, 0, 0, LIMIT), Err(Errno::NOSPC));
    assert_eq!(client.truncate("file", LIMIT), Err(Errno::NOSPC));
    assert_eq!(client.truncate("old", 200_000), Err(Errno::NOSPC));
    // The holes of what is there already.
    let sparse = client.open("sparse", RDWR).unwrap();
    let filled = (0..160)
        .filter(|number| client.write(sparse, number << 16, &piece, 0).is_ok())
        .count();
    assert!(filled < 2, "{filled}");
    // What it replaces doesn't count.
    write(0, 0).unwrap();
    let old = client.open("old", WRONLY).unwrap();
    client.write(old, 0, &piece, 0).unwrap();
    let made = (0..100)
        .take_while(|number| client.mkdir(&number.to_string(), 0o755).is_ok())
        .count();
    assert!(made < 17, "{made}");
    assert_eq!(client.put("more", b"").err(), Some(Errno::NOSPC));
    assert_eq!(client.symlink("more", b"x").err(), Some(Errno::NOSPC));
    let host: u64 = fs::metadata(place.path().join("file")).unwrap().len();
    assert!(host <= LIMIT);
}

#[test]
fn room_comes_back() {
    let (_place, client) = limited();
    client.put("file", &vec![1; 100_000]).unwrap();
    assert!(free(&client) < LIMIT - 100_000);
    let at = client.open("file", RDWR).unwrap();
    client.unlink("file").unwrap();
    assert!(free(&client) < LIMIT - 100_000, "it is open");
    client.release(at).unwrap();
    assert_eq!(free(&client), LIMIT);
    client.mkdir("folder", 0o755).unwrap();
    client.rmdir("folder").unwrap();
    client.put("file", &vec![1; 100_000]).unwrap();
    client.put("other", b"").unwrap();
    client.rename("other", "file", 0).unwrap();
    client.unlink("file").unwrap();
    assert_eq!(free(&client), LIMIT);
    client.put("file", &vec![1; 100_000]).unwrap();
    client.create("file", WRONLY | TRUNC, 0o644).unwrap();
    assert_eq!(free(&client), LIMIT - 4096);
    // Not for what was there before.
    client.unlink("old").unwrap();
    assert_eq!(free(&client), LIMIT - 4096);
}

#[test]
fn each_name_of_a_file_counts() {
    let (_place, client) = limited();
    client.put("file", b"").unwrap();
    let names = || (0..).map(|number| format!("name{number}"));
    let link = |file: &str, name: &String| client.link(file, name).is_ok();
    let linked = names().take_while(|name| link("file", name)).count();
    assert_eq!(linked as u64, LIMIT / 4096 - 1);
    assert_eq!(client.link("file", "more").err(), Some(Errno::NOSPC));
    client.unlink("file").unwrap();
    assert_eq!(free(&client), 4096);
    for name in names().take(linked) {
        client.unlink(&name).unwrap();
    }
    assert_eq!(free(&client), LIMIT);
    // A file that was there already.
    client.link("old", "older").unwrap();
    assert_eq!(free(&client), LIMIT - 4096);
    client.unlink("older").unwrap();
    assert_eq!(free(&client), LIMIT);
}

#[test]
fn writers_side_by_side_are_counted_right() {
    let (place, client) = limited();
    std::thread::scope(|scope| {
        for name in ["a", "b", "a"] {
            let client = client.clone();
            scope.spawn(move || {
                let at = client.create(name, RDWR, 0o644).unwrap();
                for number in 0..100_u64 {
                    let _ = client.write(at, number % 20 * 8192, &[1; 8192], 0);
                    let _ = client.setattr(at.0, 8, number % 7 * 8192, (0, 0), 0);
                }
                client.release(at).unwrap();
            });
        }
    });
    let on_host: u64 = ["a", "b"]
        .iter()
        .map(|name| fs::metadata(place.path().join(name)).unwrap().len())
        .sum();
    // One more request for each brings the counts to what is there.
    for name in ["a", "b"] {
        let size = fs::metadata(place.path().join(name)).unwrap().len();
        client.truncate(name, size).unwrap();
    }
    let used = LIMIT - free(&client);
    assert_eq!(used, on_host + 2 * 4096);
    // It is on the disk, as far as the host is asked.
    File::open(place.path().join("a"))
        .unwrap()
        .read_at(&mut [0], 0)
        .unwrap();
}
