/// @file
/// Draws with packages of fourstep: open one, ask for pictures, get events.
///
///     fourstep::Package package("package");
///     auto engine = fourstep::make_engine(package.manifest().backend);
///     fourstep::Player player(std::move(package), engine);
///     fourstep::Stop stop;
///     player.draw({request}, handler, stop);
#pragma once

#include "engine.hpp"
#include "engines.hpp"
#include "error.hpp"
#include "loop.hpp"
#include "manifest.hpp"
#include "package.hpp"
#include "pixels.hpp"
