mod handshake;
mod transmission;

use super::*;
use crate::limits::*;
use proptest::prelude::*;
