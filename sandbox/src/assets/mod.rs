//! What some sandboxes are made of and minivm doesn't carry: it is fetched once, by version and digest, and kept in the cache.

pub mod npm;
