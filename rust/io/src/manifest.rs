//! The manifest: what the banks of a save are, and which bytes hold them.
//!
//! `{"checksum":"<SHA-256 of the body>","body":{...}}` and a newline. Every byte is either this frame or under the
//! checksum, so that no change goes unnoticed, however harmless it would be to a reader of JSON.

use mnemex_core::block::Schema;
use mnemex_core::cells::{ColumnType, Declared};
use mnemex_core::config::{NonFinite, ScanCodec, Values, Write};
use mnemex_core::{Codec, Config, Metric};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};

use crate::pages::PagedEntry;
use crate::policies::{CapacityEntry, EvictEntry, MetricEntry, WriteEntry};

/// File name of the manifest.
pub(crate) const NAME: &str = "manifest.json";

/// What every manifest starts with.
pub(crate) const HEAD: &[u8] = b"{\"checksum\":\"";
const MIDDLE: &[u8] = b"\",\"body\":";
const TAIL: &[u8] = b"}\n";

const FORMAT: &str = "mnemex";
const VERSION: u32 = 1;

/// Bytes of the longest manifest that is read: beyond what a bank of the most lanes needs.
pub(crate) const MAX_BYTES: u64 = 1 << 30;

/// What was saved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// One bank.
    Bank,
    /// Any number of banks.
    Memory,
}

impl Kind {
    /// Its name in Python and in files.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Bank => "bank",
            Kind::Memory => "memory",
        }
    }

    /// The kind of that name.
    pub fn named(name: &str) -> Option<Kind> {
        [Kind::Bank, Kind::Memory].into_iter().find(|kind| kind.name() == name)
    }

    /// Whether a save of this kind can hold so many banks.
    pub(crate) fn holds(self, banks: usize) -> bool {
        self == Kind::Memory || banks == 1
    }
}

/// The body.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    format: String,
    version: u32,
    pub(crate) kind: Kind,
    pub(crate) banks: Vec<BankEntry>,
    pub(crate) metadata: Box<RawValue>,
}

/// One bank.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct BankEntry {
    pub(crate) config: ConfigEntry,
    /// What the first write decided; none before it.
    pub(crate) codecs: Option<Codecs>,
    /// The stored row of each row of the bank: copies share one.
    pub(crate) rows: Vec<u32>,
    pub(crate) stored: Vec<RowEntry>,
    /// Number of the version, where the file says how entries were used, which is counted in versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) number: Option<u64>,
    pub(crate) file: FileEntry,
}

/// One stored row.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RowEntry {
    pub(crate) next_id: i64,
    pub(crate) has_labels: bool,
    pub(crate) has_positions: bool,
    /// Entries per head.
    pub(crate) counts: Vec<u64>,
    /// Where the row's pages are, where the write policy makes them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) paged: Option<PagedEntry>,
}

/// One data file.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct FileEntry {
    pub(crate) name: String,
    pub(crate) bytes: u64,
    pub(crate) sha256: String,
    /// Whether it holds no NaN and no infinity.
    pub(crate) all_finite: bool,
}

/// Names of the codecs in use; no value codec without values of their own.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Codecs {
    pub(crate) key: String,
    pub(crate) value: Option<String>,
}

/// A bank's configuration, as it was asked for.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ConfigEntry {
    heads: usize,
    key_dim: usize,
    #[serde(with = "ValuesEntry")]
    values: Values,
    /// A number, or one for each head.
    capacity: Option<CapacityEntry>,
    #[serde(with = "MetricEntry")]
    metric: Metric,
    key_codec: String,
    value_codec: String,
    /// What first passes read instead of the keys; the copy itself is made again when a bank is opened.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    scan_codec: Option<String>,
    /// What becomes of tokens, where not each becomes an entry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    write: Option<WriteEntry>,
    evict: EvictEntry,
    #[serde(with = "NonFiniteEntry")]
    nonfinite: NonFinite,
    /// The caller's columns.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    columns: Vec<ColumnEntry>,
}

/// A column of the caller's.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ColumnEntry {
    name: String,
    dtype: String,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "Values", rename_all = "lowercase")]
enum ValuesEntry {
    None,
    Key,
    Dim(usize),
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "NonFinite", rename_all = "lowercase")]
enum NonFiniteEntry {
    Raise,
    Keep,
    Skip,
}

/// The name of a codec that the first write decides.
const AUTO: &str = "auto";

fn codec_named(name: &str) -> Result<Codec, String> {
    Codec::named(name).ok_or_else(|| format!("{name:?} is not a codec that this version of mnemex knows"))
}

fn scan_named(name: &str) -> Result<ScanCodec, String> {
    ScanCodec::named(name).ok_or_else(|| format!("{name:?} is not a scan codec that this version of mnemex knows"))
}

impl ConfigEntry {
    pub(crate) fn of(config: &Config) -> ConfigEntry {
        let name = |codec: Option<Codec>| codec.map_or(AUTO, Codec::name).to_owned();
        ConfigEntry {
            heads: config.heads,
            key_dim: config.key_dim,
            values: config.values,
            capacity: config.capacity.as_ref().map(CapacityEntry::of),
            metric: config.metric,
            key_codec: name(config.key_codec),
            value_codec: name(config.value_codec),
            scan_codec: config.scan_codec.map(|codec| codec.name().to_owned()),
            write: WriteEntry::of(&config.write),
            evict: EvictEntry::from(&config.evict),
            nonfinite: config.nonfinite,
            columns: (config.columns.iter())
                .map(|column| ColumnEntry { name: column.name.clone(), dtype: column.dtype.name().to_owned() })
                .collect(),
        }
    }

    pub(crate) fn config(&self) -> Result<Config, String> {
        let codec = |name: &str| if name == AUTO { Ok(None) } else { codec_named(name).map(Some) };
        Ok(Config {
            heads: self.heads,
            key_dim: self.key_dim,
            values: self.values,
            capacity: self.capacity.as_ref().map(CapacityEntry::capacity),
            metric: self.metric,
            key_codec: codec(&self.key_codec)?,
            value_codec: codec(&self.value_codec)?,
            scan_codec: self.scan_codec.as_deref().map(scan_named).transpose()?,
            write: self.write.clone().map_or(Write::Append, WriteEntry::write),
            evict: self.evict.clone().into(),
            nonfinite: self.nonfinite,
            columns: self.columns.iter().map(ColumnEntry::declared).collect::<Result<_, _>>()?,
        })
    }
}

impl ColumnEntry {
    fn declared(&self) -> Result<Declared, String> {
        let ColumnEntry { name, dtype } = self;
        let unknown = || format!("the column {name:?} is of {dtype:?}, which this version of mnemex does not know");
        ColumnType::named(dtype).map(|dtype| Declared { name: name.clone(), dtype }).ok_or_else(unknown)
    }
}

impl Codecs {
    pub(crate) fn of(schema: &Schema) -> Codecs {
        let value = schema.value.map(|layout| layout.codec.name().to_owned());
        Codecs { key: schema.key.codec.name().to_owned(), value }
    }

    /// The schema of a bank with this configuration, if the two go together.
    pub(crate) fn schema(&self, config: &Config) -> Result<Schema, String> {
        let key = codec_named(&self.key)?;
        let value = self.value.as_deref().map(codec_named).transpose()?;
        let schema = Schema::of(config, key, value.unwrap_or(key));
        let as_asked = config.key_codec.is_none_or(|asked| asked == key)
            && (value.is_none() || config.value_codec.is_none_or(|asked| Some(asked) == value));
        if !as_asked || schema.value.is_some() != value.is_some() {
            return Err("the codecs in use are not those of the bank".into());
        }
        Ok(schema)
    }
}

impl Manifest {
    pub(crate) fn new(kind: Kind, banks: Vec<BankEntry>, metadata: Box<RawValue>) -> Manifest {
        Manifest { format: FORMAT.into(), version: VERSION, kind, banks, metadata }
    }

    /// The bytes of the file.
    pub(crate) fn seal(&self) -> serde_json::Result<Vec<u8>> {
        let body = serde_json::to_vec(self)?;
        Ok([HEAD, hex(&Sha256::digest(&body)).as_bytes(), MIDDLE, &body, TAIL].concat())
    }

    /// What the bytes of a file say, or what is wrong with them.
    pub(crate) fn unseal(bytes: &[u8]) -> Result<Manifest, String> {
        /// What the manifests of all versions have in common.
        #[derive(Deserialize)]
        struct Header {
            format: String,
            version: u32,
        }
        let foreign = "not a manifest of mnemex: truncated, altered, or another program's";
        let rest = bytes.strip_prefix(HEAD).and_then(|rest| rest.split_at_checked(2 * Sha256::output_size()));
        let (checksum, rest) = rest.ok_or(foreign)?;
        let body = rest.strip_prefix(MIDDLE).and_then(|rest| rest.strip_suffix(TAIL)).ok_or(foreign)?;
        if hex(&Sha256::digest(body)).as_bytes() != checksum {
            return Err("truncated or altered: its checksum does not hold; restore it from a copy".into());
        }
        let header: Header = serde_json::from_slice(body).map_err(|error| format!("{foreign} ({error})"))?;
        if header.format != FORMAT {
            return Err(format!("holds {:?}, not {FORMAT:?}", header.format));
        }
        let version = header.version;
        if version != VERSION {
            return Err(format!(
                "has format version {version}, and this mnemex reads {VERSION}: open it with a newer one"
            ));
        }
        serde_json::from_slice(body).map_err(|error| format!("does not say what a manifest must: {error}"))
    }
}

/// Lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
