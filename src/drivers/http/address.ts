import { BlockError } from '../../base/error.js';
import type { GivenOptions, NodeOptions } from '../../block/driver.js';

/** Options with which the URL alone does not say what a node shows. */
export const PRIVATE_OPTIONS = ['cookie', 'cookie-secret', 'username', 'password-secret'];

/** The URL, as it was given, where it says all. */
export function httpFilename(options: GivenOptions): string | undefined {
  const { url } = options;
  const isPlain =
    !PRIVATE_OPTIONS.some((key) => options[key] !== undefined) && options['sslverify'] !== false;
  return isPlain && typeof url === 'string' ? url : undefined;
}

/** A cookie, or a password in the URL. */
export function httpSecretIn({ cookie, url }: GivenOptions): { what: string; instead: string } | undefined {
  if (cookie !== undefined) return { what: "a 'cookie'", instead: 'cookie-secret' };
  const hasPassword = typeof url === 'string' && URL.canParse(url) && new URL(url).password !== '';
  return hasPassword
    ? { what: "a password in its 'url'", instead: 'username and password-secret' }
    : undefined;
}

/** Of 'http' or 'https'. */
export function parseHttpFilename(scheme: string, filename: string): NodeOptions | undefined {
  return filename.startsWith(`${scheme}:`) ? { url: filename } : undefined;
}

/** What goes to the server, and as whom; user and password of the URL where none are given. Errors: invalid. */
export function parseUrl(scheme: string, text: string): { url: URL; user?: string; password?: string } {
  if (!text.startsWith(`${scheme}://`)) {
    const what = `${scheme} curl driver cannot handle the URL '${text}' (does not start with '${scheme}://')`;
    throw new BlockError('invalid', what);
  }
  if (!URL.canParse(text))
    throw new BlockError('invalid', 'CURL: Error opening file: URL using bad/illegal format or missing URL');
  const url = new URL(text);
  const [user, password] = [decode(url.username), decode(url.password)];
  url.username = url.password = url.hash = '';
  return { url, ...(user !== '' && { user }), ...(password !== '' && { password }) };
}

function decode(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}
