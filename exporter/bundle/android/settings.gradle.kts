pluginManagement {
    repositories {
        google()
        mavenCentral()
        gradlePluginPortal()
    }
}

dependencyResolutionManagement {
    repositoriesMode.set(RepositoriesMode.FAIL_ON_PROJECT_REPOS)
    repositories {
        google()
        mavenCentral()
    }
}

rootProject.name = "fourstep"
include(":app", ":fourstep")
// Written by fourstep bundle: a module for each asset pack.
rootDir.resolve("packs.txt").readLines().filter { it.isNotBlank() }.forEach { include(":$it") }
