plugins {
    id("com.android.application")
    id("org.jetbrains.kotlin.android")
}

// Written by fourstep bundle: the asset packs that hold the package, the first with its manifest.
val packs: List<String> = rootProject.file("packs.txt").readLines().filter { it.isNotBlank() }

android {
    namespace = "dev.fourstep.sample"
    compileSdk = 36
    defaultConfig {
        applicationId = "dev.fourstep.sample"
        minSdk = 24
        targetSdk = 36
        versionCode = 1
        versionName = "1.0"
        val names = packs.joinToString { "\"$it\"" }
        buildConfigField("String[]", "PACKS", "{$names}")
    }
    buildFeatures.buildConfig = true
    assetPacks += packs.map { ":$it" }
    compileOptions {
        sourceCompatibility = JavaVersion.VERSION_17
        targetCompatibility = JavaVersion.VERSION_17
    }
}

kotlin.jvmToolchain(17)

dependencies {
    implementation(project(":fourstep"))
    implementation("org.jetbrains.kotlinx:kotlinx-coroutines-android:1.10.2")
}
