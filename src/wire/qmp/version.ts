/** What clients are told of us. Tools parse the numbers and expect a QEMU. */
export const VERSION = { qemu: { micro: 22, minor: 2, major: 7 }, package: 'livedisk 0.1.0' };

/** What a program answers to --version, in the form of QEMU's. */
export function versionText(program: string): string {
  const { major, minor, micro } = VERSION.qemu;
  return `${program} version ${major}.${minor}.${micro} (${VERSION.package})\n`;
}
