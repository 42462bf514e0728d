//! Tests of the whole of `disk`, on tmpfs and on the file system of the build directory.
