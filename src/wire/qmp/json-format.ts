import type { JsonValue } from '../../schema/types.js';

/** What can be written: JSON values, and members that are undefined are left out. */
export type Writable = JsonValue | undefined | { [key: string]: Writable } | readonly Writable[] | object;

/** One line as QEMU prints it: ", " and ": " as separators, ASCII only. */
export function formatJson(value: Writable): string {
  return withValue('', value, undefined, 0);
}

/** Indented by 4, as with pretty=on. */
export function formatJsonPretty(value: Writable): string {
  return withValue('', value, '    ', 0);
}

/** What is there is only ever gone on with: a chain's answers are as deep as it, and texts of texts would be copied. */
function withValue(text: string, value: Writable, indent: string | undefined, depth: number): string {
  if (typeof value !== 'object' || value === null || value instanceof Number) return text + scalar(value);
  const pad = indent === undefined ? '' : `\r\n${indent.repeat(depth + 1)}`;
  const end = indent === undefined ? '' : `\r\n${indent.repeat(depth)}`;
  const separator = indent === undefined ? ', ' : `,${pad}`;
  let before = pad;
  if (Array.isArray(value)) {
    let list = `${text}[`;
    for (const member of value as readonly Writable[]) {
      list = withValue(list + before, member, indent, depth + 1);
      before = separator;
    }
    return `${list}${end}]`;
  }
  const members = value as { [key: string]: Writable };
  let object = `${text}{`;
  for (const key of Object.keys(members)) {
    const member = members[key];
    if (member === undefined) continue;
    object = withValue(`${object}${before}${quote(key)}: `, member, indent, depth + 1);
    before = separator;
  }
  return `${object}${end}}`;
}

function scalar(value: Writable): string {
  switch (typeof value) {
    case 'string':
      return quote(value);
    case 'number':
      return Number.isSafeInteger(value) ? String(value) : formatDouble(value);
    case 'boolean':
    case 'bigint':
      return String(value);
    default:
      return value instanceof Number ? formatDouble(value.valueOf()) : 'null';
  }
}

/** 17 significant digits without trailing zeros, as C's %.17g. JSON has no infinities: they become null. */
function formatDouble(value: number): string {
  if (!Number.isFinite(value)) return 'null';
  if (value === 0) return Object.is(value, -0) ? '-0' : '0';
  const [mantissa = '', exponent = '0'] = value.toExponential(16).split('e');
  const power = Number(exponent);
  const trim = (digits: string): string => (digits.includes('.') ? digits.replace(/\.?0+$/, '') : digits);
  if (power < -4 || power >= 17) {
    const digits = String(Math.abs(power)).padStart(2, '0');
    return `${trim(mantissa)}e${power < 0 ? '-' : '+'}${digits}`;
  }
  return trim(power < 0 ? value.toFixed(16 - power) : value.toPrecision(17));
}

const PLAIN = /^[ !#-[\]-~]*$/;
const ASCII = /^[ -~]*$/;

/** A string literal in ASCII with upper-case escapes. */
function quote(text: string): string {
  if (PLAIN.test(text)) return `"${text}"`;
  const json = JSON.stringify(text);
  // Names in JSON are long, and have nothing but quotes.
  if (ASCII.test(text)) return json;
  return json.replace(/\\(?:u([0-9a-f]{4})|.)|[\u007f-\uffff]/g, (match: string, digits?: string) => {
    if (digits !== undefined) return `\\u${digits.toUpperCase()}`;
    if (match.length > 1) return match;
    return `\\u${match.charCodeAt(0).toString(16).toUpperCase().padStart(4, '0')}`;
  });
}
