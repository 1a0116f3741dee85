import type crypto from 'node:crypto';
import { invalid } from './object.js';
import type { TlsMaterial } from './tls-credentials.js';

type Certificate = crypto.X509Certificate;

export interface CertificatePaths {
  ca: string;
  certificate: string;
  key: string;
}

const cryptography = (): typeof crypto => process.getBuiltinModule('node:crypto');

/**
 * What is wrong with certificates is told when they are loaded, and not as a failed handshake later (QEMU's sanity-check).
 * Errors: invalid, naming the file.
 */
export function checkCertificates(material: TlsMaterial, paths: CertificatePaths, isServer: boolean): void {
  const end = isServer ? 'server' : 'client';
  const authorities = readAll(material.ca, `Unable to import CA certificate list ${paths.ca}`);
  for (const authority of authorities) {
    checkTime(authority, `The CA certificate ${paths.ca}`);
    if (!authority.ca) throw invalid(`The certificate ${paths.ca} is missing basic constraints for a CA`);
  }
  if (!material.certificate) return;
  const what = `Unable to import ${end} certificate ${paths.certificate}`;
  const [own] = readAll(material.certificate, what, ': Base64 unexpected header error.');
  if (!own) return;
  checkTime(own, `The ${end} certificate ${paths.certificate}`);
  checkPurpose(own, paths.certificate, isServer);
  const isSigned = authorities.some(
    (authority) => own.checkIssued(authority) && own.verify(authority.publicKey),
  );
  if (isSigned) return;
  const failed = `Our own certificate ${paths.certificate} failed validation against ${paths.ca}`;
  throw invalid(`${failed}: The certificate hasn't got a known issuer`);
}

/** The key must be readable, and the certificate's. Errors: invalid. */
export function checkKeyPair(material: TlsMaterial, paths: CertificatePaths): void {
  const { certificate, key, passphrase } = material;
  if (!certificate || !key) return;
  const what = `Cannot load certificate '${paths.certificate}' & key '${paths.key}'`;
  const [own] = readAll(certificate, `${what}: Base64 decoding error.`);
  if (!key.includes('-----BEGIN')) throw invalid(`${what}: The requested data were not available.`);
  let privateKey: crypto.KeyObject;
  try {
    privateKey = cryptography().createPrivateKey({ key, ...(passphrase !== undefined && { passphrase }) });
  } catch {
    throw invalid(`${what}: ${isEncrypted(key) ? 'Decryption has failed.' : 'Base64 decoding error.'}`);
  }
  if (own?.checkPrivateKey(privateKey) === false)
    throw invalid(`${what}: The certificate and the given key do not match.`);
}

function isEncrypted(key: Buffer): boolean {
  return key.includes('ENCRYPTED');
}

const PEM =
  /-----BEGIN (?:X509 |TRUSTED )?CERTIFICATE-----[\s\S]*?-----END (?:X509 |TRUSTED )?CERTIFICATE-----/g;

/** All certificates of a PEM file. Errors: `what`, with `ending`, when there is none that can be read. */
function readAll(pem: Buffer | undefined, what: string, ending = ''): Certificate[] {
  const parts = pem?.toString('latin1').match(PEM) ?? [];
  const { X509Certificate } = cryptography();
  try {
    const found = parts.map((part) => new X509Certificate(part));
    if (found.length > 0) return found;
  } catch {
    // Told below.
  }
  throw invalid(`${what}${ending}`);
}

function checkTime(certificate: Certificate, what: string): void {
  const now = Date.now();
  if (Date.parse(certificate.validTo) < now) throw invalid(`${what} has expired`);
  if (Date.parse(certificate.validFrom) > now) throw invalid(`${what} is not yet active`);
}

/** Object identifiers of extended key usage (RFC 5280, 4.2.1.12). */
const SERVER_PURPOSE = '1.3.6.1.5.5.7.3.1';
const CLIENT_PURPOSE = '1.3.6.1.5.5.7.3.2';

function checkPurpose(certificate: Certificate, path: string, isServer: boolean): void {
  const purposes = (certificate as { keyUsage?: string[] }).keyUsage;
  if (purposes === undefined || purposes.includes(isServer ? SERVER_PURPOSE : CLIENT_PURPOSE)) return;
  throw invalid(
    `Certificate ${path} purpose does not allow use for with a TLS ${isServer ? 'server' : 'client'}`,
  );
}
