//! The module `mnemex._native`: numpy arrays in, numpy arrays out, the interpreter released in between.
//!
//! Users never see it. Shapes are completed and words are parsed in the Python facade; what depends on a bank's state is
//! checked in the core, and every error arrives as one of the exceptions of `mnemex.errors`.

mod arrays;
mod bank;
mod call;
mod columns;
mod error;
mod files;
mod ingest;
mod parts;
mod planner;
mod product;
mod receipt;
mod snapshot;

use pyo3::prelude::*;

/// Native part of mnemex; use the `mnemex` package.
#[pymodule]
mod _native {
    #[pymodule_export]
    use crate::bank::NativeBank;
    #[pymodule_export]
    use crate::bank::change_all;
    #[pymodule_export]
    use crate::bank::commit_all;
    #[pymodule_export]
    use crate::call::isa;
    #[pymodule_export]
    use crate::call::isas;
    #[pymodule_export]
    use crate::call::max_threads;
    #[pymodule_export]
    use crate::files::open;
    #[pymodule_export]
    use crate::files::save;
    #[pymodule_export]
    use crate::ingest::NativeIngest;
    #[pymodule_export]
    use crate::ingest::stream;
    #[pymodule_export]
    use crate::ingest::stream_schema;
    #[pymodule_export]
    use crate::planner::NativeScene;
    #[pymodule_export]
    use crate::product::bag;
    #[pymodule_export]
    use crate::product::bag_backward;
    #[pymodule_export]
    use crate::product::product_backward;
    #[pymodule_export]
    use crate::product::product_lookup;
    #[pymodule_export]
    use crate::product::product_read;
    #[pymodule_export]
    use crate::receipt::NativeReceipt;
    #[pymodule_export]
    use crate::snapshot::NativeSnapshot;
}
