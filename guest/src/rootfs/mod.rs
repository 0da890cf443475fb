//! One root file system out of layers, and the initramfs that holds it.
