/** A string literal's content cannot be read; `message` says why, in QEMU's words. */
export class BadStringLiteral extends Error {}

const ESCAPES: { readonly [letter: string]: string } = {
  '"': '"',
  "'": "'",
  '\\': '\\',
  '/': '/',
  b: '\b',
  f: '\f',
  n: '\n',
  r: '\r',
  t: '\t',
};

/**
 * The value of a literal with its quotes, one character a byte. As QEMU reads it: characters must be Unicode's
 * (no lone surrogates, no noncharacters); NUL may be there as \u0000.
 */
export function readStringLiteral(literal: string): string {
  const text = decodeUtf8(literal.slice(1, -1));
  if (!text.includes('\\')) return text;
  let out = '';
  for (let at = 0; ;) {
    const backslash = text.indexOf('\\', at);
    if (backslash < 0) return out + text.slice(at);
    out += text.slice(at, backslash);
    const letter = text[backslash + 1] ?? '';
    if (letter === 'u') {
      const escape = readUnicodeEscape(text, backslash, literal.slice(-1));
      out += escape.value;
      at = backslash + escape.length;
      continue;
    }
    const plain = ESCAPES[letter];
    if (plain === undefined) throw new BadStringLiteral('invalid escape sequence in string');
    out += plain;
    at = backslash + 2;
  }
}

function readUnicodeEscape(text: string, at: number, quote: string): { value: string; length: number } {
  const unit = hexAt(text, at);
  if (unit === undefined) throw notUnicode((text + quote).slice(at, at + 6));
  const next = unit >= 0xd800 && unit <= 0xdbff && text[at + 6] === '\\' ? hexAt(text, at + 6) : undefined;
  const isPair = next !== undefined && next >= 0xdc00 && next <= 0xdfff;
  const value = isPair ? String.fromCharCode(unit, next) : String.fromCharCode(unit);
  const length = isPair ? 12 : 6;
  if (!isUnicode(value)) throw notUnicode(text.slice(at, at + length));
  return { value, length };
}

/** The code unit of the escape \uXXXX at `at`. */
function hexAt(text: string, at: number): number | undefined {
  const match = /^\\u([0-9a-fA-F]{4})/.exec(text.slice(at, at + 6));
  return match ? parseInt(match[1] ?? '', 16) : undefined;
}

function notUnicode(escape: string): BadStringLiteral {
  return new BadStringLiteral(`${escape} is not a valid Unicode character`);
}

function isUnicode(text: string): boolean {
  return !/[\p{Surrogate}\p{Noncharacter_Code_Point}]/u.test(text);
}

function decodeUtf8(bytes: string): string {
  if (!/[^\x00-\x7f]/.test(bytes)) return bytes;
  // The overlong form of NUL is QEMU's own way to write it.
  const wellFormed = bytes.replaceAll('\xc0\x80', '\0');
  try {
    const decoder = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true });
    const text = decoder.decode(Buffer.from(wellFormed, 'latin1'));
    if (isUnicode(text)) return text;
  } catch (error) {
    if (!(error instanceof TypeError)) throw error;
  }
  throw new BadStringLiteral('invalid UTF-8 sequence in string');
}
