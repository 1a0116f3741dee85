// The program's entry. The size of Node's thread pool must be set before anything uses the pool. Flushes and cold reads
// of several disks at once wait there.
process.env['UV_THREADPOOL_SIZE'] ??= '8';
const program: string = './program/main.js';
// eslint-disable-next-line @typescript-eslint/no-require-imports -- it is CommonJS, and its name known after the build
require(program);
