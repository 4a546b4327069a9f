//! Patches that cost more than they should.
