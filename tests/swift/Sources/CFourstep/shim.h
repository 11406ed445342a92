#include <fourstep.h>
