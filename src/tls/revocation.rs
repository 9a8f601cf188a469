//! Until when are revocation lists good?
//!
//! An authority issues a new list in time, and a job brings it here. When that job dies, nobody
//! knows any more which certificates have been revoked. As in PostgreSQL, certificates of that
//! authority are refused then, so it has to be told of before.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustls::pki_types::CertificateRevocationListDer;
use x509_cert::crl::CertificateList;
use x509_cert::der::Decode;

/// The longest time ahead of the end at which it is told of. Lists that live for less than four
/// weeks are given a quarter of their life.
const LONGEST_NOTICE: Duration = Duration::from_hours(7 * 24);

/// The end of the list in a file that ends first.
#[derive(Debug)]
pub struct Expiry {
    file: PathBuf,
    /// When it should have been replaced.
    due: SystemTime,
    /// Its `nextUpdate`.
    end: SystemTime,
}

impl Expiry {
    /// The first end among these lists.
    pub fn first(file: &Path, lists: &[CertificateRevocationListDer<'_>]) -> Option<Self> {
        lists
            .iter()
            .filter_map(|list| {
                let list =
                    CertificateList::<x509_cert::certificate::Rfc5280>::from_der(list).ok()?;
                let begin = list.tbs_cert_list.this_update.to_system_time();
                let end = list.tbs_cert_list.next_update?.to_system_time();
                let life = end.duration_since(begin).unwrap_or_default();
                Some(Self {
                    file: file.to_path_buf(),
                    due: end - LONGEST_NOTICE.min(life / 4),
                    end,
                })
            })
            .min_by_key(|expiry| expiry.end)
    }

    /// What to tell the operator at this time.
    pub fn warning(&self, now: SystemTime) -> Option<String> {
        let file = self.file.display();
        let end = humantime::format_rfc3339_seconds(self.end);
        if now >= self.end {
            Some(format!(
                "{file}: a revocation list has expired at {end}: clients with certificates of its \
                 authority are refused until it is replaced"
            ))
        } else if now >= self.due {
            Some(format!(
                "{file}: a revocation list expires at {end}: clients with certificates of its \
                 authority are refused from then on, unless it is replaced"
            ))
        } else {
            None
        }
    }
}
