//! What host and guest say to each other, on COM2 and in guest RAM.
