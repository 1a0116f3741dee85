/**
 * Whether all of `text` is as the pattern says: `*` is any text, `?` one character, and nothing else is special (as GLib's
 * patterns). Time: at most the product of both lengths, whatever either says, since only the last `*` is ever tried anew.
 */
export function matchesGlob(pattern: string, text: string): boolean {
  const [wanted, found] = [[...pattern], [...text]];
  let [at, from] = [0, 0];
  /** Behind the last `*`, and where in the text what stands there was tried. */
  let retry: { at: number; from: number } | undefined;
  while (from < found.length) {
    if (wanted[at] === '*') retry = { at: ++at, from };
    else if (at < wanted.length && (wanted[at] === '?' || wanted[at] === found[from])) {
      at++;
      from++;
    } else if (retry) {
      at = retry.at;
      from = ++retry.from;
    } else return false;
  }
  return wanted.slice(at).every((one) => one === '*');
}
