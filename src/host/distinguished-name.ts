import { BlockError } from '../base/error.js';

/** By object identifier, as GnuTLS abbreviates them; others are told as numbers. */
const NAMES: Readonly<Record<string, string>> = {
  '2.5.4.3': 'CN',
  '2.5.4.4': 'surName',
  '2.5.4.5': 'serialNumber',
  '2.5.4.6': 'C',
  '2.5.4.7': 'L',
  '2.5.4.8': 'ST',
  '2.5.4.9': 'street',
  '2.5.4.10': 'O',
  '2.5.4.11': 'OU',
  '2.5.4.12': 'title',
  '2.5.4.13': 'description',
  '2.5.4.15': 'businessCategory',
  '2.5.4.17': 'postalCode',
  '2.5.4.41': 'name',
  '2.5.4.42': 'givenName',
  '2.5.4.43': 'initials',
  '2.5.4.44': 'generationQualifier',
  '2.5.4.46': 'dnQualifier',
  '2.5.4.65': 'pseudonym',
  '0.9.2342.19200300.100.1.1': 'UID',
  '0.9.2342.19200300.100.1.25': 'DC',
  '1.2.840.113549.1.9.1': 'EMAIL',
  '1.3.6.1.4.1.311.60.2.1.1': 'jurisdictionOfIncorporationLocalityName',
  '1.3.6.1.4.1.311.60.2.1.2': 'jurisdictionOfIncorporationStateOrProvinceName',
  '1.3.6.1.4.1.311.60.2.1.3': 'jurisdictionOfIncorporationCountryName',
};

/** Tags of the text types of X.680, and how their bytes are read. */
const TEXTS: Readonly<Record<number, (bytes: Buffer) => string>> = {
  0x0c: (bytes) => bytes.toString('utf8'),
  0x12: (bytes) => bytes.toString('latin1'),
  0x13: (bytes) => bytes.toString('latin1'),
  0x14: (bytes) => bytes.toString('latin1'),
  0x16: (bytes) => bytes.toString('latin1'),
  0x1a: (bytes) => bytes.toString('latin1'),
  0x1e: (bytes) => Buffer.from(bytes).swap16().toString('utf16le'),
};
const VERSION_TAG = 0xa0;

interface Element {
  tag: number;
  content: Buffer;
  /** With its header. */
  whole: Buffer;
}

/**
 * The subject of a certificate (DER) as GnuTLS writes it, and so QEMU's authorization compares it: attributes in the
 * certificate's order, escaped as in RFC 4514. Empty where there is none. Errors: corrupt.
 */
export function distinguishedName(certificate: Buffer): string {
  const fields = childrenOf(only(childrenOf(element(certificate, 0).content), 0).content);
  // Serial number, signature, issuer, validity, subject, after a version that may be missing (RFC 5280, 4.1).
  const subject = only(fields, fields[0]?.tag === VERSION_TAG ? 5 : 4);
  return childrenOf(subject.content)
    .map(({ content: set }) => childrenOf(set).map(attributeText).join('+'))
    .join(',');
}

function attributeText({ content }: Element): string {
  const [type, value] = childrenOf(content);
  if (!type || !value) throw malformed();
  const identifier = identifierText(type.content);
  const name = NAMES[identifier];
  const read = TEXTS[value.tag];
  if (name === undefined || !read || (value.tag === 0x1e && value.content.length % 2 !== 0))
    return `${name ?? identifier}=#${value.whole.toString('hex')}`;
  return `${name}=${escaped(read(value.content))}`;
}

function escaped(text: string): string {
  return text.replace(/[,+"\\<>;]|^[ #]| $/g, '\\$&').replaceAll('\0', '\\00');
}

/** An OBJECT IDENTIFIER (X.690, 8.19). */
function identifierText(bytes: Buffer): string {
  const arcs: number[] = [];
  let arc = 0;
  for (const byte of bytes) {
    arc = arc * 128 + (byte % 128);
    if (byte >= 128) continue;
    arcs.push(arc);
    arc = 0;
  }
  const [first = 0, ...others] = arcs;
  const root = Math.min(2, Math.floor(first / 40));
  return [root, first - 40 * root, ...others].join('.');
}

function childrenOf(content: Buffer): Element[] {
  const found: Element[] = [];
  for (let at = 0; at < content.length;) {
    const next = element(content, at);
    found.push(next);
    at += next.whole.length;
  }
  return found;
}

/** One element of DER with a tag of one byte. */
function element(bytes: Buffer, at: number): Element {
  const tag = bytes[at];
  const first = bytes[at + 1];
  if (tag === undefined || first === undefined) throw malformed();
  const lengthOfLength = first < 0x80 ? 0 : first - 0x80;
  const start = at + 2 + lengthOfLength;
  if (lengthOfLength > 4 || start > bytes.length) throw malformed();
  const lengthBytes = lengthOfLength === 0 ? first : bytes.readUIntBE(at + 2, lengthOfLength);
  if (start + lengthBytes > bytes.length) throw malformed();
  return {
    tag,
    content: bytes.subarray(start, start + lengthBytes),
    whole: bytes.subarray(at, start + lengthBytes),
  };
}

function only(elements: readonly Element[], index: number): Element {
  const found = elements[index];
  if (!found) throw malformed();
  return found;
}

function malformed(): BlockError {
  return new BlockError('corrupt', 'The certificate cannot be read');
}
